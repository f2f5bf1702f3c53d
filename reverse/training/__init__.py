"""Training: labelled batches from records or scenes, and supervised fine-tuning with the three tokens."""
