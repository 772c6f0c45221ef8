"""What `vtoken bench` measures."""
