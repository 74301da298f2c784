"""How well steering works, and what it costs: sweeps, comparisons, capability, safety. Knows the engine and the judges, not the server."""
