"""How weights and caches are stored: formats of checkpoints and engines, llama.cpp's mixes, cache types."""
