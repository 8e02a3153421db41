"""GGUF files, read: header, metadata, which tensor is in which block, shapes and caches."""
