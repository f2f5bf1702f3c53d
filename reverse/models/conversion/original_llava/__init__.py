"""Convert checkpoints of the original LLaVA layout to transformers' LLaVA."""
