"""A fixed budget of every fuzzer; `make fuzz` runs them for longer."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.long_run import Summary, fuzz, pieces, work
from tests.fuzz.running import Fault, Found, Target, expect, make_case, minimise, run_case
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_no_case_fails(name):
    """An input that nobody thought of would end in a traceback, a hang or a wrong result."""
    target = TARGETS[name]
    found = [run_case(target, 0, number) for number in range(target.quick)]
    failed = [one for one in found if isinstance(one, Found)]
    assert not failed, "\n".join(map(str, failed[:5]))
    if name != "decoding":  # scripts are all valid
        assert {"read", "refused"} == set(found)  # mutants that are all good, or all bad, show little


@pytest.mark.parametrize("name", TARGETS)
def test_a_case_is_known_by_its_number(name):
    """A failure that depends on the cases before it could not be looked at again."""
    alone = [repr(make_case(TARGETS[name], 3, number)) for number in (40, 39)]
    after = [repr(make_case(TARGETS[name], 3, number)) for number in range(41)]
    assert alone == [after[40], after[39]]


def doubled(rng: random.Random) -> str:
    return "".join(rng.choices("abx", k=60))


def refuse_two(text: str) -> str:
    expect(text.count("x") < 2, "two of them")
    return "read"


def test_a_fault_is_found_made_small_and_repeated():
    """A fuzzer that cannot fail would pass whatever the library does."""
    target = Target("made", doubled, refuse_two, 1.0, 1)
    found = [run_case(target, 0, number) for number in range(5)]
    assert all(isinstance(one, Found) and one.smallest == "'xx'" for one in found)
    assert found == [run_case(target, 0, number) for number in range(5)]
    assert "seed 0 case 3: Fault: two of them at" in str(found[3])


def test_what_takes_too_long_is_a_fault():
    """A hang would stop the fuzzers instead of being reported."""

    def hang(_: str) -> str:
        while True:
            pass

    found = run_case(Target("made", doubled, hang, 1.0, 1, seconds=0.01), 0, 0, shrink=False)
    assert isinstance(found, Found) and "TookTooLong" in found.error


def test_minimising_keeps_the_kind_of_fault():
    """Another fault that a shorter input has would be reported in place of the one that was found."""

    def check(data: bytes) -> str:
        if len(data) < 3:
            raise KeyError("another")
        raise Fault("this one")

    target = Target("made", doubled, check, 1.0, 1)
    assert len(minimise(target, b"123456789", _error(check, b"123456789"))) == 3


def _error(check, case):
    try:
        check(case)
    except Exception as error:
        return error


def test_pieces_hold_every_case_once():
    """A run that goes on, or is divided among workers, would skip cases or count them twice."""
    names = list(TARGETS)
    made = list(pieces(names, 20_000, 0))
    cases = [(name, number) for name, _, first, count in made for number in range(first, first + count)]
    assert len(cases) == len(set(cases)) == 20_000 and {name for name, _ in cases} == set(names)
    summary = Summary()
    for name, seed, first, _ in [made[0], made[0]]:
        summary.add(work((name, seed, first, 3)))
    assert summary.cases == 6 and summary.failed == 0


def test_a_long_run_goes_on_where_it_was_stopped(tmp_path):
    """Hours of work would be done again after Ctrl-C."""
    state = tmp_path / "state.jsonl"
    first = fuzz(["spans"], 20, 0, workers=0, state=state, quiet=True)
    kept = state.read_text()
    again = fuzz(["spans"], 20, 0, workers=0, state=state, quiet=True)
    assert first.to_dict() == again.to_dict() and first.cases == 20 and state.read_text() == kept
