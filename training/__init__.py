"""Programs that made the weights of the package; not part of it."""
