"""The parts that decoders are made of, as tensors and caches. Names are relative to the decoder layer."""
