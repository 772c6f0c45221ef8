"""Operations that cost: a plain reference, a fast CPU path, a Triton twin."""
