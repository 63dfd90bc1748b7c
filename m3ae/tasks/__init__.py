"""Tasks: a model class, its data and its metrics, for the one training loop."""
