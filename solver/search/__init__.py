"""In what order bounds and plans are sought, from cheap to dear; of plans that are as good, the roomiest."""
