"""From recorded runs to tables and figures. Reads records only, and never imports torch."""
