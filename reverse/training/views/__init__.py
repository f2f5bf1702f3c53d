"""Views: pure functions from draft records to training records, one for each thing a mode asks of a model."""
