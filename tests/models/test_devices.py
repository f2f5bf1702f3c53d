"""Which devices a model can be put on, and what is said where a device is not there."""

import pytest
import torch
from typer.testing import CliRunner

import reverse
from reverse.cli import app
from reverse.models.devices import available_devices, check_device, default_device, device_name


@pytest.fixture
def machine(monkeypatch):
    """`machine(kind, count)`: torch reports so many accelerators of that kind; None: none."""

    def make(kind, count=1):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        there = None if kind is None else torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: there)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return make


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_any_accelerator_that_torch_reports_is_taken(machine, kind):
    """A model could be put on the CPU and on CUDA only, though torch knows what to do."""
    machine(kind, 2)
    assert available_devices() == ["cpu", f"{kind}:0", f"{kind}:1"]
    assert check_device(kind) == torch.device(kind)
    assert check_device(f"{kind}:1") == torch.device(kind, 1)
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(
        ValueError, match=f"device '{kind}:2' is not on this machine: it has cpu, {kind}:0, {kind}:1"
    ):
        check_device(f"{kind}:2")


def test_a_missing_accelerator_is_refused_before_anything_is_read(machine):
    """The error of torch comes after minutes of loading, and names no device that would do."""
    machine(None)
    for name in ("cuda", "mps", "xpu:1", "meta"):
        with pytest.raises(ValueError, match=f"device '{name}' is not on this machine: it has cpu$"):
            reverse.load("no-such-folder", device=name)
    with pytest.raises(ValueError, match="device 'gpu' is not known: this machine has cpu"):
        reverse.load("no-such-folder", device="gpu")


@pytest.mark.parametrize("command", ["generate tiny-llava", "eval chair --model tiny-llava --out x"])
def test_commands_say_which_devices_are_there(machine, command):
    """`--device mps` was refused with "try cuda or cpu" on a machine that has it."""
    machine("mps")
    result = CliRunner().invoke(app, [*command.split(), "--device", "xpu"])
    assert result.exit_code == 2
    assert "device 'xpu' is not on this machine: it has cpu, mps:0" in result.stderr


def test_the_default_is_one_that_was_tried(machine):
    """Accelerators that nobody has tried would be taken without being asked for."""
    machine("mps")
    assert default_device() == ("cuda" if torch.cuda.is_available() else "cpu")


def test_names_of_devices(monkeypatch):
    """A report would name the processor where an accelerator has computed."""
    assert device_name("cpu") is None
    assert device_name("mps") == "mps"  # torch knows no name of it
    monkeypatch.setattr(
        torch.xpu, "get_device_properties", lambda device: type("P", (), {"name": f"Arc {device}"})
    )
    assert device_name("xpu:1") == "Arc xpu:1"
