"""Methods that drop tokens after the encoder, one file each."""
