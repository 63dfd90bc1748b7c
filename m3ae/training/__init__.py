"""Training: typed configuration, the only loop, optimiser groups, sample order, checkpoints."""

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: to be tried again


class TrainingStopped(Exception):
    """A run stopped before its end because it was asked to; resuming continues the run."""
