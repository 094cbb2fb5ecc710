"""One trainer for every architecture."""
