"""MT-LNN: a bank of leaky averages in the MLP's place, and the attention beside it (AwareLiquid/M1, everest-an/O1)."""
