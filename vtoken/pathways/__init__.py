"""pathways of vtoken."""
