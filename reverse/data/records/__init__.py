"""The published instruct record: its schema, checks, readers and subsets."""
