"""A plan inside a model: encode, reduce, cut the prompt, run the stock model."""
