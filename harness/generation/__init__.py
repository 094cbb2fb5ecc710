"""Generation, one token at a time."""
