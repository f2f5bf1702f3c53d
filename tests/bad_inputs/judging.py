"""One bad input is an `Entry`; `judge` tries it and says what is unclear about the answer.

Clear is one line that names the value (or the file) and says what to do instead: a ValueError, TypeError or
OSError of a call; of a command exit code 2 and "error: …" on stderr, or the parser's own box of an option. A
traceback, a result, a hang, several lines, the input echoed at length: unclear.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tests.bad_inputs.world import World
from tests.fuzz.running import REFUSALS, TookTooLong, limit_cpu

LONGEST = 1000  # characters of a line; lists of files or keys need some room
LINES = 15  # of an error with a list
SECONDS = 20.0  # CPU time of one entry
# What a message says after the value: words of advice, a range, a list of what is allowed.
_ADVICE = """
try give name names must use add remove run set take takes leave fetch copy check make keep save
load start install write choose ask mend known at.least at.most between lie.in needs wait shorten
scale crop see open convert merge put expected missing cut move raise say spell cannot may.be
belongs stop split pass free stand has goes.on knows one.of did.you.mean download looked.for is.it
are.these only possible.arguments typos one.record.a.line
"""
_REMEDY = re.compile(rf"\b({'|'.join(_ADVICE.split())})\b|`reverse ", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A bad input.

    `try_it` takes the world and returns the result of a command, or whatever a call returns.
    `values`: texts of which the message must hold one. `good`: the input is unusual and must be accepted;
    "either": accepted or clearly refused; "report": the command says on stdout what is wrong, exit code 1.
    """

    name: str
    try_it: Callable[[World], Any]
    values: tuple[str, ...] = ()
    expected: Literal["refused", "good", "either", "report"] = "refused"


@dataclass(frozen=True)
class Verdict:
    """What became of an entry: `unclear` is empty where all is well."""

    name: str
    unclear: str
    message: str


def judge(entry: Entry, world: World) -> Verdict:
    """Try one entry."""
    try:
        with limit_cpu(SECONDS):
            result = entry.try_it(world)
    except TookTooLong as error:
        return Verdict(entry.name, f"hangs: {error}", "")
    except REFUSALS as error:
        return _verdict(entry, _kind(error), f"{error}", refused=True)
    except ValueError as error:
        if not entry.name.startswith("retrospective"):  # a call of model.generate(), which refuses it itself
            return _of_bare(entry, error)
        return _verdict(entry, "", f"{error}", refused=True)
    except Exception as error:  # of a call: not of a documented kind
        return _of_bare(entry, error)
    if type(result).__name__ == "Result" and hasattr(result, "exit_code"):
        return _of_command(entry, result)
    return _verdict(entry, "", f"accepted: {result!r:.200}", refused=False)


def _of_bare(entry: Entry, error: Exception) -> Verdict:
    place = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"a bare {type(error).__name__} at {place.filename}:{place.lineno}"
    return Verdict(entry.name, kind, str(error)[:500])


def _kind(error: BaseException) -> str:
    name = type(error).__name__
    bare = {"KeyError", "IndexError", "UnicodeDecodeError", "UnicodeEncodeError", "JSONDecodeError"}
    return f"a bare {name}" if name in bare else ""


def _of_command(entry: Entry, result: Any) -> Verdict:
    said = result.stderr.strip()
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}"
        return Verdict(entry.name, f"traceback: {type(error).__name__} at {place}", str(error)[:500])
    if result.exit_code == 0:
        return _verdict(entry, "", f"accepted: {result.stdout.strip()[:300]!r} {said[:300]!r}", refused=False)
    if entry.expected == "report" and result.exit_code == 1:
        return _verdict(entry, "", result.stdout, refused=True)
    if "Usage:" in said:
        box = " ".join(re.sub(r"[─│╭╮╰╯]", " ", said.split("Usage:", 1)[1]).split())
        return _verdict(entry, "", box.partition("Error")[2] or box, refused=True)
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    trouble = ""
    if result.exit_code == 1 and not errors and entry.expected in ("good", "either"):
        return _verdict(entry, "", said, refused=False)  # it ran, and what it says is not good
    if "Traceback" in result.output:
        trouble = "traceback"
    elif result.exit_code != 2:
        trouble = f"exit code {result.exit_code}"
    elif len(errors) != 1:
        trouble = f"{len(errors)} error lines"
    elif any(not line.startswith("  ") for line in lines[errors[0] + 1 :]):
        trouble = "lines behind the error"
    return _verdict(entry, trouble, "\n".join(lines[errors[0] :]) if errors else said, refused=True)


def _verdict(entry: Entry, trouble: str, message: str, refused: bool) -> Verdict:
    flat = " ".join(message.split())
    if trouble:
        pass
    elif not refused:
        trouble = "" if entry.expected in ("good", "either") else "silently accepted"
    elif entry.expected == "good":
        trouble = "refused, and is good"
    elif entry.expected == "report":
        trouble = ""
    elif "Traceback" in flat:
        trouble = "traceback"
    elif max(map(len, message.splitlines()), default=0) > LONGEST:
        trouble = f"{max(map(len, message.splitlines()))} characters long"
    elif len(message.splitlines()) > LINES:
        trouble = f"{len(message.splitlines())} lines"
    elif any(ord(char) < 32 and char not in "\n\t" for char in message):
        trouble = "control characters are echoed"
    elif entry.values and not any(value in flat for value in map(_flat, entry.values)):
        trouble = f"does not name {entry.values[0]!r}"
    elif not _REMEDY.search(flat):
        trouble = "names no remedy"
    return Verdict(entry.name, trouble, message[:1000])


def _flat(text: str) -> str:
    return " ".join(text.split())


def all_entries() -> list[Entry]:
    """The whole table, every name once."""
    from tests.bad_inputs import calls, checkpoints, commands, files, recipes

    made = [entry for module in (calls, commands, files, recipes, checkpoints) for entry in module.entries()]
    names = [entry.name for entry in made]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise AssertionError(f"entries with one name: {repeated[:5]}")
    return made
