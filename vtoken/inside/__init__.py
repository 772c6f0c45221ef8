"""Methods that let visual tokens leave or fuse inside the language model, one file each."""
