"""Hold: tokens that are not computed and that attention still sees, through a KV cache of the stock prompt's columns.

``support`` says which models can hold, ``rotary`` turns keys, ``tables`` describes the columns, ``cache`` is the
cache, ``mask`` the prefill's mask, ``inputs`` the two functions that a caller needs, ``attention`` the form of
decoding that keeps the computed rows only.
"""
