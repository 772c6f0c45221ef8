"""Methods that let tokens leave inside the vision encoder."""
