"""Training of scorers: ``vtoken train scorer``, for the pruner ``learned``."""
