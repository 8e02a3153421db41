"""A model without memory: built on torch's meta device from a config, run there for its shapes, read as a profile."""
