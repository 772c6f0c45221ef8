"""bench of vtoken."""
