"""A video that the language model reads in chunks: positions, the growing cache, held cells, and questions behind it.

``video`` is the state that grows, ``clock`` gives positions, ``runs`` decides where held cells are computed, ``cache``
stores columns and puts them back, ``tail`` asks.
"""
