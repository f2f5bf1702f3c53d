"""Check that a captured step computes what the model computes, by the logits of one prompt."""

from __future__ import annotations

import torch

from reverse.errors import BackendError

__all__ = ["DifferentLogits", "check_logits"]


class DifferentLogits(BackendError, ValueError):
    """A captured step does not compute what the model computes, for a `reason`."""

    def __init__(self, reason: str):
        super().__init__(f"backend='cuda_graph' cannot decode this: {reason}; use backend='auto'")
        self.reason = reason


def check_logits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Compare a step's logits for a prompt with the model's own; return whether they could be compared.

    Done once for each runner: it finds modifications that `find_modification` does not know. Half precision
    rounds the two differently, by about a hundredth; another computation differs by the size of the logits.
    Raises DifferentLogits if they are not the same.
    """
    most = 0.25 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
    found, expected = found.double(), expected.double()
    if not bool(torch.isfinite(expected).all()):  # a fault of the model, which the first step reports
        return False
    difference = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    if not difference <= most:
        raise DifferentLogits(
            "a captured step, which reads the weights, gives other logits than the model's forward pass (by "
            f"{difference:.1%} of their size), so something in it was changed"
        )
    return True
