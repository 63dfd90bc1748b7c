"""Images as files and arrays: read, refused where they are no sound pictures, and brought to 8 bits."""
