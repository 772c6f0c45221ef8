"""Methods that act inside the encoder, one file each."""
