"""Records, pictures and the scenes world: what a model is trained on and asked about."""
