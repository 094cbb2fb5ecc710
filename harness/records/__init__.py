"""Recorded runs on disk."""
