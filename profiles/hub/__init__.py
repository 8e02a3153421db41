"""Models of the Hugging Face Hub: small config files and the headers of weights are fetched, never weights.

Only where it is allowed (`allow.py`). `huggingface_hub` has one door, `remote.py`, which is imported when first used.
"""
