"""Optimisation: the loss, the learning rate, which weights are trained, and several devices."""
