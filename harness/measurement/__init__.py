"""Generation memory, latency and cost."""
