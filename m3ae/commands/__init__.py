"""The commands of `m3ae.cli`; importing them imports nothing heavy."""
