"""One self-contained HTML file of all that the records give."""
