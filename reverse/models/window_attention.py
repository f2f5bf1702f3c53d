"""Compute the attention within all windows of a vision tower in one call.

Qwen2.5-VL's tower attends within windows of 8 x 8 patches. Without flash-attn transformers calls the
attention once per window, in every layer: thousands of calls per picture, and a GPU that waits for the host.
PyTorch has a kernel for sequences of any lengths from 2.10 on (`torch.nn.attention.varlen`), and transformers
lets attention functions be registered by name. The kernel is used if it exists and agrees with the loop.

    with use_varlen_window_attention(model):
        model(**inputs)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reverse.compatibility import IncompatibleLibraryError
from reverse.models.families import family_of

__all__ = ["NAME", "use_varlen_window_attention"]

# transformers passes lengths, and does not split, if "flash" is in the name.
NAME = "reverse_flash_windows"
_KERNEL_TYPES = (torch.float16, torch.bfloat16)


@contextmanager
def use_varlen_window_attention(model: Any) -> Iterator[None]:
    """Use the kernel for the windows of the vision tower while the block lasts, if that is possible.

    It is not possible without the kernel (an older torch, no CUDA device) and for a tower without windows. A
    tower whose attention is not "sdpa" keeps it, because it was chosen explicitly.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    tower = family_of(base).vision_tower(base)
    before = getattr(tower.config, "_attn_implementation", None)
    if not hasattr(tower.config, "window_size") or before != "sdpa" or not _kernel_here(tower):
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    # Set it on the whole model: a tower on which it is set alone looks for the flash-attn package first.
    base.set_attn_implementation({"vision_config": NAME})
    try:
        yield
    finally:
        base.set_attn_implementation({"vision_config": before})


def _kernel_here(tower: Any) -> bool:
    if not torch.cuda.is_available() or tower.config.hidden_size // tower.config.num_heads % 8:
        return False
    try:
        has_kernel = find_spec("torch.nn.attention.varlen") is not None
    except ImportError:
        return False
    if not has_kernel or torch.cuda.get_device_capability() < (8, 0):
        return False
    return _agrees(tower.config.num_heads, tower.config.hidden_size // tower.config.num_heads, "cuda")


@lru_cache
def _agrees(heads: int, width: int, device: str) -> bool:
    """Whether the kernel gives the same values and gradients as the loop. It is tested once per process.

    A release with another meaning of lengths, scale or layout would train on wrong features without an error.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 1, heads, 90, width, generator=generator).to(device, torch.bfloat16)
    starts = torch.tensor([0, 64, 74, 90], dtype=torch.int32, device=device)
    found = []
    try:
        for by_kernel in (True, False):
            q, k, v = (each.clone().requires_grad_() for each in drawn)
            with torch.enable_grad():
                seen = _by_kernel(q, k, v, starts, 64) if by_kernel else _one_by_one(q, k, v, starts)
                seen.float().square().sum().backward()
            found.append([seen.detach(), q.grad, k.grad, v.grad])
        pairs = [(mine.float(), theirs.float()) for mine, theirs in zip(*found, strict=True)]
        apart = max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs)
        fault = None if apart < 2e-2 else f"differs from it by {apart:.2g}"
    except Exception as error:  # whatever it is, the loop does the same
        fault = f"failed: {error}"
    if fault is not None:
        warnings.warn(f"windows are attended to one by one, for the kernel for all {fault}", stacklevel=2)
    return fault is None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    *, cu_seq_lens_q: Tensor | None = None, max_length_q: int = 0, scaling: float | None = None,
    dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute attention with the interface of transformers: (1, heads, length, width) to (1, length, heads,
    width).

    Args:
        cu_seq_lens_q: (windows + 1,) int32, where windows begin and the last ends.
        max_length_q: length of the longest window.
    """
    if cu_seq_lens_q is None:
        raise IncompatibleLibraryError("transformers", "the vision tower hands no cu_seq_lens_q to attention")
    usual = scaling is None or math.isclose(scaling, query.shape[-1] ** -0.5)  # older kernels know no other
    if query.device.type != "cuda" or query.dtype not in _KERNEL_TYPES or dropout or not usual:
        return _one_by_one(query, key, value, cu_seq_lens_q, scaling, dropout), None
    return _by_kernel(query, key, value, cu_seq_lens_q, int(max_length_q)), None


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts = starts.to(torch.int32)
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    seen = varlen_attn(q, k, v, cu_seq_q=starts, cu_seq_k=starts, max_q=longest, max_k=longest)
    return seen.unsqueeze(0)  # type: ignore[union-attr]  # a tuple only with return_aux


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute window by window, for float32 and for the CPU: the kernel supports only half precision."""
    lengths = (starts[1:] - starts[:-1]).tolist()
    parts = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    seen = [F.scaled_dot_product_attention(q, k, v, scale=scaling, dropout_p=dropout) for q, k, v in parts]
    return torch.cat(seen, dim=2).transpose(1, 2)
