"""Runtimes that decode sequences: one protocol (`base`), implemented on transformers and on CUDA graphs."""
