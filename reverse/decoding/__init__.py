"""Decoding that takes back what the model is not sure of: policy, verifier, rewriting, engines."""
