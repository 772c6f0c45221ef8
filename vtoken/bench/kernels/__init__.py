"""`vtoken bench kernels`: every operation of ``vtoken.kernels`` beside the device's limit and other forms."""
