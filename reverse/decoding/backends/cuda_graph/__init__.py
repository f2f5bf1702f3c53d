"""A decode step captured as a CUDA graph over a pool of cache rows; called, not captured, elsewhere."""
