"""Modes decide above single answers. `mode=` takes one of these objects or its name.

>>> reverse.generate(model, processor, "chart.png", question, mode=reverse.modes.Select(n=8))
"""

from reverse.decoding.asks import MODES, resolve_mode
from reverse.modes.auto_mode import Auto
from reverse.modes.mode import Budget
from reverse.modes.plain import Plain
from reverse.modes.refine import Refine
from reverse.modes.reflect import Reflect
from reverse.modes.resample import Resample
from reverse.modes.select import Select
from reverse.modes.self_correct import SelfCorrect
from reverse.modes.tree import Tree

__all__ = [
    "MODES", "Auto", "Budget", "Plain", "Refine", "Reflect", "Resample", "Select", "SelfCorrect", "Tree",
    "resolve_mode",
]  # fmt: skip

MODES.update(
    {
        mode.name: mode
        for mode in (
            Resample,
            Plain,
            SelfCorrect,
            Reflect,
            Refine,
            Select,
            Tree,
            Auto,
        )
    }
)
