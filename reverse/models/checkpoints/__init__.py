"""Checkpoints on disk: loading, weight files, configuration checks and fingerprints."""
