"""Trained models in the formats of others: `python -m harness.export run=PATH format=hf`."""
