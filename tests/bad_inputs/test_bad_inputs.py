"""A part of the table of bad inputs in every run; `benchmarks/robustness.py` tries all of it."""

import pytest

import reverse
from reverse.errors import RequestError
from tests.bad_inputs.judging import Entry, all_entries, judge
from tests.bad_inputs.world import World

# What decodes, trains, tags or writes a checkpoint takes seconds together; the others are thinned out.
SLOW = (
    "eval",
    "sweep",
    "train",
    "calibrate",
    "report",
    "compare",
    "score",
    "checkpoint",
    "truth",
    "questions",
)
SLOW += (
    "records",
    "tag",
    "negatives",
    "import",
    "demo",
    "data-",
    "tokens",
    "merge",
    "convert",
    "add",
    "check",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    original, reverse.load = reverse.load, made.load
    yield made
    reverse.load = original


def quick_entries():
    return [entry for entry in all_entries() if not entry.name.startswith(SLOW)][::4]


def test_bad_inputs_are_refused_clearly(world):
    """A wrong number, path or file would end in a traceback, or in an answer that looks like one."""
    unclear = [verdict for entry in quick_entries() if (verdict := judge(entry, world)).unclear]
    assert not unclear, "\n".join(f"{v.name}: {v.unclear}: {v.message}" for v in unclear)


def test_the_table_is_large():
    """Bad inputs that nobody tries are not known to be refused."""
    assert len(all_entries()) >= 1000 and len(quick_entries()) >= 100


@pytest.mark.parametrize(
    ("act", "unclear"),
    [
        (lambda world: 1 / 0, "a bare ZeroDivisionError"),
        (lambda world: {}["seven"], "a bare KeyError"),
        (lambda world: 7, "silently accepted"),
        (lambda world: refuse("seven is wrong, try six"), ""),
        (lambda world: refuse("it is wrong, try six"), "does not name 'seven'"),
        (lambda world: refuse("seven is wrong"), "names no remedy"),
        (lambda world: refuse("seven is wrong, try " + "six " * 500), "characters long"),
        (lambda world: refuse("seven\x1b is wrong, try six"), "control characters"),
        (lambda world: world.run("generate tiny-llava --seed seven"), ""),
        (lambda world: world.run("generate tiny-llava --seed eight"), "does not name 'seven'"),
    ],
)
def test_what_is_unclear(world, act, unclear):
    """A judge that finds everything clear would show nothing."""
    found = judge(Entry("made", act, ("seven",)), world).unclear
    assert (unclear in found) if unclear else not found


def refuse(message):
    raise RequestError(message)
