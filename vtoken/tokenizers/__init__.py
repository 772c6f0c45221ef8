"""tokenizers of vtoken."""
