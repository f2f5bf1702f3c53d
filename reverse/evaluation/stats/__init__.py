"""Statistics of scored answers: bootstrap intervals and paired comparisons."""
