"""Turn pictures and prompts into the inputs of a forward pass."""
