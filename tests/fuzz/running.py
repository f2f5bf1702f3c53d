"""One fuzzer is a `Target`: it makes an input by a seed and judges what the library does with it.

    target = TARGETS["spans"]
    found = run_case(target, seed=0, number=17)     # None, or what went wrong
    found.where, found.error, found.smallest

A case is known by (target, seed, number) alone, so that whoever reads a report can run it again. A case fails
where the library raises what it does not document, gives another result than an independent slow computation,
takes more CPU time than `Target.seconds`, or more memory than `MEMORY`.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reverse.errors import ReverseError

REFUSALS = (ReverseError, OSError)  # what commands turn into one line; anything else is a bug
LONGEST_MESSAGE = 1500  # characters: an error that echoes its input says nothing
MEMORY = 400 << 20  # bytes that one case may add to the highest use so far
TRIALS = 400  # of the minimiser


@dataclass(frozen=True)
class Target:
    """`make` gives one input; `check` feeds it to the library and returns "read" or "refused", or raises."""

    name: str
    make: Callable[[random.Random], Any]
    check: Callable[[Any], str]
    share: float  # of a long run
    quick: int  # cases of the test suite
    seconds: float = 2.0  # CPU time of one case
    shrinks: bool = True  # whether any shorter text, bytes or list is an input too


@dataclass(frozen=True)
class Found:
    """A case that failed. `smallest` is the shortest input found that fails in the same way."""

    target: str
    seed: int
    number: int
    error: str
    where: str
    smallest: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.target} seed {self.seed} case {self.number}: {self.error} at {self.where}; "
            f"input {self.smallest}"
        )


class TookTooLong(BaseException):
    """Raised inside a case that has used its CPU time; no `except Exception` swallows it."""


class Fault(AssertionError):
    """A result that an independent computation contradicts, or an error that does not explain itself."""


def make_case(target: Target, seed: int, number: int) -> Any:
    """The input of one case."""
    return target.make(random.Random(f"{seed} {target.name} {number}"))


def run_case(target: Target, seed: int, number: int, shrink: bool = True) -> Found | str:
    """The outcome ("read", "refused") of one case, or what went wrong with it."""
    case = make_case(target, seed, number)
    outcome, error = attempt(target, case)
    if error is None:
        return outcome
    smallest = minimise(target, case, error) if shrink and target.shrinks else case
    shown = repr(smallest)
    shown = shown if len(shown) <= 2000 else f"{shown[:2000]}… ({len(shown)} characters)"
    return Found(target.name, seed, number, describe(error), place_of(error), shown)


def attempt(target: Target, case: Any) -> tuple[str, BaseException | None]:
    """What the library makes of an input: an outcome, and the error that is a fault (None: all is well)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    try:
        with limit_cpu(5 * target.seconds):
            outcome = target.check(case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "failed", error
    spent = time.process_time() - begun
    if spent > target.seconds:
        return "failed", Fault(f"took {spent:.1f} s of CPU time, at most {target.seconds:g} are allowed")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > MEMORY:
        return "failed", Fault(f"took {grown >> 20} MiB of memory, at most {MEMORY >> 20} are allowed")
    return outcome, None


@contextlib.contextmanager
def limit_cpu(seconds: float) -> Iterator[None]:
    """Raise `TookTooLong` once the process has used so much CPU time."""

    def stop(*_: Any) -> None:
        raise TookTooLong(f"not finished after {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def check_refusal(error: BaseException, *names: str) -> str:
    """Judge the error of a documented kind: it explains itself shortly and names each of `names`."""
    message = str(error)
    if len(message.strip()) < 12:
        raise Fault(f"{type(error).__name__} explains nothing: {message!r}") from error
    if len(message) > LONGEST_MESSAGE:
        raise Fault(f"{type(error).__name__} of {len(message)} characters: {message[:80]!r}…") from error
    if type(error).__name__ in ("KeyError", "IndexError", "UnicodeDecodeError", "UnicodeEncodeError"):
        raise Fault(f"a bare {type(error).__name__}: {message!r:.100}") from error
    for name in names:
        if name not in message:
            raise Fault(f"the error does not name {name}: {message!r:.200}") from error
    return "refused"


def expect(truth: Any, message: str, *values: Any) -> None:
    """Raise `Fault` unless `truth`."""
    if not truth:
        raise Fault(message + "".join(f", {value!r:.300}" for value in values))


def describe(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}"


def place_of(error: BaseException) -> str:
    """The innermost line of the library that an error came from, else of the fuzzer."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/reverse/" in frame.filename and "/tests/" not in frame.filename]
    last = (ours or frames)[-1] if frames else None
    if last is None:
        return "?"
    path = Path(last.filename)
    return f"{path.parent.name}/{path.name}:{last.lineno}"


def minimise(target: Target, case: Any, error: BaseException) -> Any:
    """A shorter input (text, bytes or list) that fails in the same way: pieces are left out, halves first."""
    if not isinstance(case, (str, bytes, list)):
        return case
    kind, place = type(error), place_of(error)
    left = TRIALS if not isinstance(error, TookTooLong) else 12
    size = max(1, len(case) // 2)
    while size and left:
        at, shorter = 0, False
        while at < len(case) and left:
            tried = case[:at] + case[at + size :]
            left -= 1
            _, again = attempt(target, tried)
            if again is not None and type(again) is kind and place_of(again) == place:
                case, shorter = tried, True
            else:
                at += size
        if not shorter or size > len(case):
            size //= 2
    return case
