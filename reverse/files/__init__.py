"""Files: atomic writes, locks, and bounded reading of text and JSON."""
