"""A video that does not end: frames come in, questions are answered at any moment, memory stays bounded.

``feed`` makes gated chunks of frames, ``watch`` holds standing questions, ``report`` counts, ``stream``
joins them, ``api`` opens it.
"""
