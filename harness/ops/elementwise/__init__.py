"""RMSNorm and SwiGLU."""
