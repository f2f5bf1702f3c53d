"""Devices that a model can be put on: the CPU, and whatever accelerators torch reports."""

from __future__ import annotations

import torch

from reverse.errors import RequestError

__all__ = ["available_devices", "check_device", "default_device", "device_name"]


def available_devices() -> list[str]:
    """Names of the devices of this machine: "cpu", then each accelerator ("cuda:0", "mps:0", "xpu:1")."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return ["cpu"]
    return ["cpu", *(f"{kind.type}:{i}" for i in range(torch.accelerator.device_count()))]


def default_device() -> str:
    """CUDA where there is one, else the CPU: other accelerators are taken only where they are asked for."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: torch.device | str | int) -> torch.device:
    """The device of that name. Raises ValueError where there is none, naming those that are there."""
    there = available_devices()
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RequestError(
            f"device {device!r:.80} is not known: this machine has {', '.join(there)}"
        ) from error
    if found.type != "cpu" and f"{found.type}:{found.index or 0}" not in there:
        raise RequestError(f"device {str(device)!r:.80} is not on this machine: it has {', '.join(there)}")
    return found


def device_name(device: torch.device | str) -> str | None:
    """What an accelerator calls itself, such as "NVIDIA H200"; None where it has no name, as the CPU."""
    found = torch.device(device)
    properties = getattr(getattr(torch, found.type, None), "get_device_properties", None)
    if found.type == "cpu" or properties is None:
        return None if found.type == "cpu" else found.type
    return str(getattr(properties(found), "name", found.type))
