"""Plans weighed against their cost: whether to move, how many slots, what a failure does."""
