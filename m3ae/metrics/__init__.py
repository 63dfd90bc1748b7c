"""Metrics of the tasks, usable offline."""
