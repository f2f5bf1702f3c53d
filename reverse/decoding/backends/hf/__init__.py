"""The backend on transformers models with a dynamic KV cache."""

from reverse.decoding.backends.hf.backend import HfBackend

__all__ = ["HfBackend"]
