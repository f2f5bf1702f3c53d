"""Decoding that takes back phrases of which the model is not sure: requests, engine, policies, backends."""
