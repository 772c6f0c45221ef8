"""pruners of vtoken."""
