"""Parts of the command line (`m3ae.cli`); importing them imports nothing heavy."""
