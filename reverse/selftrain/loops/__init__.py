"""Loops of self-training: stages with a manifest that go on after any kill (R3V, LLaVA-SCo, SRPO, TSST)."""
