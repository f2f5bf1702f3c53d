"""Options that are numbers take numbers that can be worked with, in every command."""

import inspect
import typing

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from reverse.cli import app


def numeric_options():
    found = []

    def walk(command, names):
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*names, name])
        if command.callback is None:
            return
        function = inspect.unwrap(command.callback)
        hints = typing.get_type_hints(function, include_extras=False)
        for each in command.params:
            kinds = {hints.get(each.name), *typing.get_args(hints.get(each.name))} & {int, float}
            if kinds:
                found.append((" ".join(names), each.opts[0], kinds.pop().__name__))

    walk(get_command(app), [])
    return found


def arguments_of(command):
    """As many words as the command's arguments and its required options take."""
    current = get_command(app)
    for name in command.split():
        current = current.commands[name]
    required = [each for each in current.params if each.required]
    return [
        word
        for each in required
        for word in (["x.jsonl"] if each.param_type_name == "argument" else [each.opts[0], "x"])
    ]


@pytest.mark.parametrize(("command", "option", "kind"), numeric_options())
def test_every_number_is_finite(command, option, kind):
    """NaN passes every `min=`: a price, a threshold or a share of NaN would be worked with."""
    for value in ["nan", "inf", "1e999"] if kind == "float" else [str(10**30)]:
        said = CliRunner().invoke(app, [*command.split(), *arguments_of(command), f"{option}={value}"])
        assert said.exit_code == 2, said.output
        lines = said.stderr.splitlines()
        assert len(lines) == 1 and option in lines[0] and value.replace("1e999", "inf")[:3] in lines[0], (
            said.stderr
        )


def test_there_are_such_options():
    """The test above would test nothing."""
    commands = {command for command, _, _ in numeric_options()}
    assert {"generate", "demo", "calibrate", "data negatives"} <= commands
