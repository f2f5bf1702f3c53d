"""Training data: turn records into token ids, labels and pictures in batches."""
