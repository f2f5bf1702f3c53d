"""Checkpoints of the original LLaVA layout become transformers' LLaVA."""
