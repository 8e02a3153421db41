"""The steps of `load`: an empty model, what each tensor of a checkpoint becomes, room for it, and reading it."""
