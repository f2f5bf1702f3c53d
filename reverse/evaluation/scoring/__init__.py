"""What the scorers of all benchmarks share: tables of counts, counts of yes and no, and the judge."""
