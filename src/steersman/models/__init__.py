"""Language models: find them, load them, read and edit their residual stream."""
