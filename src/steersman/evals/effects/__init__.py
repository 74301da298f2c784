"""Measure what steering vectors do to the features of an SAE, and fit the map that predicts it (SAE-TS, arXiv:2411.02193)."""
