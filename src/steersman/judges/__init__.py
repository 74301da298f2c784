"""Judges: how far an answer shows a behaviour, and whether it is still sensible. One file each; all answer the same question."""
