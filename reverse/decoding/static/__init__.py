"""The captured engine: one decode step as one CUDA graph, rewinding by moving a counter."""
