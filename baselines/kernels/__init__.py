"""Fused kernels of the baselines: numba for the CPU, Triton for CUDA, one file an operation and backend."""
