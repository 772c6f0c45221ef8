"""kernels of vtoken."""
