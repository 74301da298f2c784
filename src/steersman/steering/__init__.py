"""Steering: what is done to the residual stream (edits), by which recipe, and how a batch of recipes is applied."""
