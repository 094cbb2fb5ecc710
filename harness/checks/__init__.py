"""What an architecture must pass before its run counts."""
