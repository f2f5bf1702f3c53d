"""Marking key phrases in plain answers, and the words needed for it."""
