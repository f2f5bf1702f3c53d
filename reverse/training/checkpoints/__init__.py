"""What a training run writes: checkpoints to go on from, and the finished folder."""
