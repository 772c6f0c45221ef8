"""Methods that fuse tokens after the encoder, one file each."""
