"""The engine: many requests, each with its own recipe, in one running batch."""
