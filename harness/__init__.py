"""The rules of the contest: one contract, one backbone, one trainer, one instrument. No architecture, no Hydra."""
