"""Loops of stages that take no model, and kills at any change of files."""

import io
import json
import os
import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from reverse.selftrain.loops.stage import LoopPlan, Stage, StageBody


class Killed(BaseException):
    """The process is no more: nothing catches this."""


CALLS = ("replace", "rename", "unlink", "mkdir", "rmdir")  # of os; finalisers call none of these


def locks():
    """Whether a lock is being taken or given back."""
    frame = sys._getframe(2)
    while frame is not None and "lock" not in os.path.basename(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None


@contextmanager
def kill_at(number):
    """Raise Killed at the `number`-th change of files: before it if the number is odd, else after it.

    Lines are not traced: CPython 3.11 can hang where a signal arrives in a traced frame.
    """
    left = (number + 1) // 2

    def wrap(call):
        def counted(*arguments, **options):
            nonlocal left
            if locks():  # a process that is killed holds no lock, and this one would
                return call(*arguments, **options)
            left -= 1
            if left == 0 and number % 2:
                raise Killed
            try:
                return call(*arguments, **options)
            finally:
                if left == 0:
                    raise Killed

        return counted

    with ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(patch.object(os, name, wrap(getattr(os, name))))
        stack.enter_context(patch.object(io, "open", wrap(io.open)))
        yield


def write_parts(context):
    """Append numbers to a file, going on from what is there; a big file and a small one come of them."""
    part = context.out / "numbers.part"
    have = part.read_text().split() if part.exists() else []
    for number in range(len(have), context.settings["parts"]):
        with part.open("a") as stream:
            stream.write(f"{(context.seed * 31 + number) % 97}\n")


def join_parts(context):
    """The file of all inputs' numbers and one's own."""
    own = (context.out / "numbers.part").read_text().split()
    above = [json.loads((path / "all.json").read_text()) for path in context.inputs.values()]
    texts = [(path / "pool/numbers.txt").read_text() for path in context.inputs.values()]
    (context.out / "pool").mkdir(exist_ok=True)
    (context.out / "pool/numbers.txt").write_text("\n".join([*own, *texts]))
    (context.out / "all.json").write_text(json.dumps([own, above]))
    (context.out / "numbers.part").unlink(missing_ok=True)
    return {"tokens": len(own)}


def run_parts(context):
    # A kill behind the last unlink finds no part any more.
    if not (context.out / "all.json").exists() or (context.out / "numbers.part").exists():
        write_parts(context)


def join_again(context):
    if not (context.out / "numbers.part").exists() and (context.out / "all.json").exists():
        return {"tokens": context.settings["parts"]}
    return join_parts(context)


BODIES = {"numbers": StageBody(join_again, run_parts)}


def make_plan(shape, parts=3, recipe="a: 1\n"):
    """A loop of a shape: for each stage the places of its inputs, and whether its files are kept."""
    stages = []
    for number, (wanted, is_kept) in enumerate(shape):
        places = sorted({place % number for place in wanted}) if number else []
        inputs = {f"i{k}": f"s-{place}" for k, place in enumerate(places)}
        keep = "always" if is_kept else "while needed"
        settings = {"parts": parts + number % 2}
        stages.append(Stage(f"s-{number}", "numbers", settings, inputs, seed=number, keep=keep))
    return LoopPlan("fake", tuple(stages), (stages[-1].name,), recipe)


def files_of(root):
    """What a loop left, without what a clock decides."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            content = path.read_text()
            if path.name in ("loop.json", "stage.json"):
                content = strip(json.loads(content))
            found[str(path.relative_to(root))] = content
    return found


def strip(value):
    """A JSON value without how long it took and how often it was begun."""
    if isinstance(value, dict):
        return {key: strip(each) for key, each in value.items() if key not in ("seconds", "begun")}
    return [strip(each) for each in value] if isinstance(value, list) else value
