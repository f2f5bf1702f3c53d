"""The names of modes, where they stand without the modes."""

import subprocess
import sys
from typing import get_args

from typer.testing import CliRunner

from reverse.cli import app
from reverse.decoding.mode_names import JUDGE_NAMES, MODE_NAMES
from reverse.modes import MODES
from reverse.modes.select import Judge


def test_names_for_help_texts_are_those_of_the_modes():
    """`--help` would name modes that do not exist, or leave some out."""
    assert tuple(MODES) == MODE_NAMES and all(MODES[name].name == name for name in MODE_NAMES)
    assert get_args(Judge) == JUDGE_NAMES
    names = ("torch", "transformers", "reverse.modes")
    loaded = f"import sys, reverse.decoding.mode_names; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
    for command in ("generate", "eval"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(name in shown for name in (*MODE_NAMES, *JUDGE_NAMES))
