"""Fused kernels of the liquid family: numba for the CPU, Triton for CUDA, one file an operation and backend."""
