"""The contract of a mixer and the backbone around it."""
