"""Second streams over all frames, one file each."""
