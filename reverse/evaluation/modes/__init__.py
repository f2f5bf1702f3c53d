"""What modes gain and cost, from draft records: curves, transitions, costs, detection and reports."""
