"""Loops of self-training: stages with a manifest that can be resumed after any kill (R3V, LLaVA-SCo, SRPO,
TSST).
"""
