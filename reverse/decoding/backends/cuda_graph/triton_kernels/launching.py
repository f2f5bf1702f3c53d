"""Start a kernel of a step while the one before it is still ending."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl


@triton.jit
def release_next(PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Allow the next kernel to take the units that this one leaves free.

    A few heavy programs would then crowd on the units that happen to be free while others idle. So kernels of
    many light programs call it before their work, and small ones once they may begin.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_previous(PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait until all kernels before this one are done.

    Every kernel must call it; only weights may be read before.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()


@functools.cache
def supports_early_launch(device: int) -> bool:
    """Whether a kernel may start before the one before it ends (programmatic dependent launch, Hopper on)."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options() -> dict[str, bool]:
    is_early = torch.cuda.is_available() and supports_early_launch(torch.cuda.current_device())
    return {"PDL": True, "launch_pdl": True} if is_early else {"PDL": False}
