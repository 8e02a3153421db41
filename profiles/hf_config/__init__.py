"""A Hugging Face config.json, read: typed fields, the parts that decoders are made of, the families built in."""
