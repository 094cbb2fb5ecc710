"""Hawk and Griffin."""
