"""M1 (AwareLiquid): a streaming multi-timescale core and a fast-weight memory, as an adapter and in attention's place."""
