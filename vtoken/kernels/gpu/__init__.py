"""Triton twins of the operations; imported by dispatch alone, where Triton is there."""
