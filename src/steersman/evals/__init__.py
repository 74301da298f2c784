"""How well steering works, and what it costs: sweeps, comparisons, effects, capability, safety."""
