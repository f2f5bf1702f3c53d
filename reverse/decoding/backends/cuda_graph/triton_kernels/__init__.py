"""The Triton kernels of a captured decode step."""
