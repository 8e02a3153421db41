"""Whether anything fits, in bytes alone: what is missing where nothing does, and the smallest changes that help."""
