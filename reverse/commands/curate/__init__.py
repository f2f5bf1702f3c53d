"""The commands of `reverse curate`, and their options."""
