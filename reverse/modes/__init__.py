"""Modes decide above single answers. `mode=` takes one of these objects or its name.

>>> reverse.generate(model, processor, "chart.png", question, mode=reverse.modes.Select(n=8))
"""

from reverse.decoding.asks import MODES, resolve_mode
from reverse.modes.plain import Plain
from reverse.modes.resample import Resample
from reverse.modes.select import Select

__all__ = ["MODES", "Plain", "Resample", "Select", "resolve_mode"]

MODES.update({mode.name: mode for mode in (Resample, Plain, Select)})
