"""Clocks and a list of figures, shared by the benchmarks of decoding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Figures", "copy_bandwidth", "seconds", "synchronize"]


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], repeats: int = 3, warm: int = 1) -> float:
    """Median wall-clock seconds of a call, work on the device included."""
    for _ in range(warm):
        call()
    taken = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        call()
        synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a large device-to-device copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * source.numel() * 2 / seconds(lambda: target.copy_(source), 10, 3)


class Figures(dict[str, Any]):
    """What was measured on one model; every figure is printed as it comes."""

    def __init__(self, model: str):
        super().__init__(model=model)
        self._began = time.perf_counter()

    def add(self, key: str, value: Any) -> None:
        self[key] = value
        print(f"{self['model']} {time.perf_counter() - self._began:6.1f} s  {key}: {value}", flush=True)
