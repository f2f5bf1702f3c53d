"""The devices of this machine: the CPU, and the accelerators that torch reports."""

from __future__ import annotations

import torch

from reverse.errors import RequestError

__all__ = ["available_devices", "check_device", "default_device", "device_name"]


def available_devices() -> list[str]:
    """Return the names of the devices of this machine: "cpu", then each accelerator ("cuda:0", "mps:0",
    "xpu:1").
    """
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return ["cpu"]
    return ["cpu", *(f"{kind.type}:{i}" for i in range(torch.accelerator.device_count()))]


def default_device() -> str:
    """Return "cuda" if this machine has it, else "cpu". Other accelerators must be named explicitly."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: torch.device | str | int) -> torch.device:
    """Return the device with this name. Raises RequestError, with a list of the devices, if there is none."""
    known = available_devices()
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RequestError(
            f"device {device!r:.80} is not known: this machine has {', '.join(known)}"
        ) from error
    if found.type != "cpu" and f"{found.type}:{found.index or 0}" not in known:
        raise RequestError(f"device {str(device)!r:.80} is not on this machine: it has {', '.join(known)}")
    return found


def device_name(device: torch.device | str) -> str | None:
    """Return the name of an accelerator, such as "NVIDIA H200", or its type; None for the CPU."""
    found = torch.device(device)
    properties = getattr(getattr(torch, found.type, None), "get_device_properties", None)
    if found.type == "cpu":
        return None
    if properties is None:
        return found.type
    return str(getattr(properties(found), "name", found.type))
