"""Policies: after every segment of an answer they say whether to go on, to go back or to finish."""
