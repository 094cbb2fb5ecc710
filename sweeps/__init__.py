"""Sweeps: a question, its grids and its seeds in a YAML each, and what expands, extends and queues them."""
