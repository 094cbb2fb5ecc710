"""A small server of one trained model: `python -m harness.serve run=PATH`."""
