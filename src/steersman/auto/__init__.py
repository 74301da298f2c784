"""Auto-steering: one sentence in, a proven recipe out. Contrast set, candidate features, weights, strength, proof."""
