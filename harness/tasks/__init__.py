"""What a model is trained and judged on: text corpora and synthetic tasks."""
