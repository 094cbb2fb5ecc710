"""LrcSSM, liquid-resistance liquid-capacitance neurons as a diagonal state-space model."""
