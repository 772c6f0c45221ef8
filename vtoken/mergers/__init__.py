"""mergers of vtoken."""
