"""Graded benchmarks about numbers, charts, tables and geometry."""
