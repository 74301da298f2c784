"""Sparse autoencoders: read published ones, train, keep and index our own; encode, decode, and nothing of steering."""
