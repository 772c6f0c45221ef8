"""Gates: methods that decide before the encoder, one file each."""
