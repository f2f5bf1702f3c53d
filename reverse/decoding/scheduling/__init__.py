"""Sharing a backend: tasks ask for branches, the scheduler decodes them, a worker takes the steps."""
