"""Loss in, weights out: optimizers, checkpoints, run folders, stops, and the one loop for every task."""
