"""The machine a run is made on: what it is, what it holds, what it spends."""
