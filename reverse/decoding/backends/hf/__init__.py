"""The backend on transformers models with a dynamic KV cache."""
