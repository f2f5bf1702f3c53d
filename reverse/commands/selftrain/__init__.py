"""`reverse selftrain`: loops of self-training."""
