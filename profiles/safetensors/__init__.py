"""Checkpoints in safetensors, read: headers, what names mean, which tensor is in which block."""
