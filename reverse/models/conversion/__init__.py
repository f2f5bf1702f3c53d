"""Convert published checkpoints of other layouts to plain transformers checkpoints."""
