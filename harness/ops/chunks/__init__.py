"""Chunks of tokens, within which a recurrence with a scalar decay is a few matrix products."""
