"""Published checkpoints in other layouts become plain transformers checkpoints."""
