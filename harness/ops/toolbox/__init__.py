"""What kernels in numba and Triton are built from."""
