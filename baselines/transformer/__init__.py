"""Causal self-attention as in Llama."""
