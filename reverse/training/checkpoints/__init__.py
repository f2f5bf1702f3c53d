"""Files of a training run: checkpoints for resuming, and the finished folder."""
