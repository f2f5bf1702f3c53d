"""p(`</UN>`) as a detector of wrong phrases: curves, thresholds and their promised risk."""
