"""From pictures and prompts to what a forward pass takes."""
