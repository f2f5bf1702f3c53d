"""Training: records or scenes to labelled batches, and supervised fine-tuning with the three tokens."""
