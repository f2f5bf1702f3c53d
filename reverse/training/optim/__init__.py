"""Optimisation: the loss, the learning rate, the choice of trained weights, and several devices."""
