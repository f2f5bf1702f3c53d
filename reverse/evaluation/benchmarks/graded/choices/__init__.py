"""Graded benchmarks of several options about pictures of all kinds."""
