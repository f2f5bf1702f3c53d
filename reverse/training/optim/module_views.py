"""Views of modules: a second object, of another class, with the state of a module.

Training needs other forward passes of a head and of peft's token layers. Their objects and classes belong to
other libraries and are not changed: a view takes the place of such a module in the model. It holds the same
parameters under the same names, the same buffers and the same hooks.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

__all__ = ["view_module"]

Kind = TypeVar("Kind", bound=nn.Module)


def view_module(module: nn.Module, kind: type[Kind]) -> Kind:
    """Make an object of `kind`, a subclass of the module's class, that shares all attributes of `module`."""
    view = kind.__new__(kind)
    attributes: dict[str, Any] = vars(module)
    object.__setattr__(view, "__dict__", attributes)
    return view
