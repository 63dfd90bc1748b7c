"""Training: typed configuration, the only loop, optimiser groups, sample order, checkpoints."""
