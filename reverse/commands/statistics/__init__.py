"""The commands that compute statistics of stored answers and scores."""
