"""Training data: records become token ids, labels and pictures in batches."""
