"""M1 (AwareLiquid): a streaming core of many time scales and a fast weight, beside attention or in its place."""
