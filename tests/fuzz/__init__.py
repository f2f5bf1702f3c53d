"""Fuzzers: what files, pictures, replies, recipes, checkpoints and models may hold, mutated at random."""
