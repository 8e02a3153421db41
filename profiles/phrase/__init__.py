"""What a hardware phrase is made of; `profiles/read_phrase.py` puts it together."""
