"""Processors: pictures, tokenizers and chat templates, and their checks."""
