"""What `apply` is made of: where blocks are at home, checks before a byte moves, hooks, hops, divided experts."""
