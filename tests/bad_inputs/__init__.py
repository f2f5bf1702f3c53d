"""Hundreds of bad inputs, one line each, and what a clear refusal is."""
