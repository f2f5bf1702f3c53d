"""Opening pictures from outside safely."""
