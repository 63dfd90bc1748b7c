"""Checkpoints of others: the published M3AE format, both ways, and the encoders that a model can start from."""
