"""Training of the small V-JEPA 2."""
