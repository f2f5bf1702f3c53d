"""Describe how a result was made: device, versions and date."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["describe_environment"]


def describe_environment(device: str) -> dict[str, str]:
    """Return device, versions and date, for stored results."""
    import torch
    import transformers

    from reverse import __version__
    from reverse.models.devices import device_name

    name = device_name(device) or _processor()
    return {
        "device": name,
        "reverse": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
