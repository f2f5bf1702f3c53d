"""Self-training on the reasoning world, on one device in minutes: R3V, STaR, a longer training, SCo, SRPO."""
