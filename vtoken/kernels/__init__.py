"""The expensive operations: a plain reference, a fast CPU path, a Triton twin."""
