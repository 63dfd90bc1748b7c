"""Images that are refused, because reading them would take more memory than anybody has."""

MAX_SIDE = 65_500  # pixels; the longest that libjpeg writes
MAX_ASPECT = 100  # the longer side over the shorter: enlarging the shorter to a model's size takes as much memory
