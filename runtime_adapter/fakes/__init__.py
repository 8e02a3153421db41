"""What `dry_run` is made of: fake devices, a full-size model on them, a run of it, and the bytes alive meanwhile."""
