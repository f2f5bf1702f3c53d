"""The demonstration: pictures the model has never seen, its plain answers, and what checking makes of them.

    reverse demo                                   # or: from reverse.demo import show; show(Console())

The pictures come from the scenes world's `test` split, which nothing is trained on, and lie with their truth
in `reverse/assets/demo` (`playground/art/make_demo.py` chose them). A phrase is called wrong when the picture
does not hold its object. Everything is greedy or seeded: two runs on a machine print the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reverse.data.scenes.object_names import Mention, find_objects, make_noun_phrase
from reverse.decoding.result import Result
from reverse.errors import MissingFileError

__all__ = ["MAX_NEW_TOKENS", "PROMPT", "Example", "answers", "examples", "show", "wrong_mentions"]

FOLDER = Path(__file__).resolve().parent / "assets" / "demo"
PROMPT = "Describe this image."
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Example:
    """A bundled picture and what it shows, COCO name -> count."""

    picture: Path
    truth: dict[str, int]


def examples(folder: Path | None = None) -> list[Example]:
    """The pictures of `folder` (else the bundled ones), each with the truth in the JSON file of its name.

    Raises FileNotFoundError where there is none.
    """
    folder = folder or FOLDER
    found = [
        Example(path, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["truth"])
        for path in sorted(folder.glob("*.png"))
    ]
    if not found:
        raise MissingFileError(
            f"no demo pictures in {str(folder)!r}: install a released wheel, or run "
            "playground/art/make_demo.py"
        )
    return found


def wrong_mentions(text: str, truth: Collection[str]) -> list[Mention]:
    """The objects named in `text` that are not in the picture."""
    return [mention for mention in find_objects(text) if mention.name not in truth]


def answers(
    model: Any, processor: Any, picture: Any, threshold: float | None = None
) -> tuple[Result, Result]:
    """The same model's answer with checking off, and with checking on."""
    from reverse.api import generate

    def ask(**how: Any) -> Result:
        return generate(
            model, processor, images=picture, prompt=PROMPT, max_new_tokens=MAX_NEW_TOKENS, seed=0, **how
        )

    return ask(mode="plain"), ask(mode="resample", threshold=threshold)


def show(console: Console, name: str = "tiny-llava", threshold: float | None = None) -> None:
    """Print the demonstration of model `name`; `threshold` else the checkpoint's own.

    Raises what `load` raises, and FileNotFoundError where there are no pictures.
    """
    bundled = examples()
    from reverse.models import default_threshold, load

    model, processor = load(name)
    limit = default_threshold(model) if threshold is None else threshold
    console.print(
        f"{name}: a phrase is taken back when p(</UN>) > {limit:g}", highlight=False, soft_wrap=True
    )
    before = after = 0
    for example in bundled:
        plain, checked = answers(model, processor, str(example.picture), limit)
        before += len(wrong_mentions(plain.text, example.truth))
        after += len(wrong_mentions(checked.text, example.truth))
        _print(console, example, plain, checked)
    console.print(
        f"\n[bold]Objects named that are not there: {before} with checking off, {after} with checking on.[/]",
        highlight=False,
        soft_wrap=not console.is_terminal,
    )


def _print(console: Console, example: Example, plain: Result, checked: Result) -> None:
    there = ", ".join(make_noun_phrase(name, count) for name, count in example.truth.items())
    console.print()
    if console.is_terminal:
        console.rule(style="dim")
    console.print(str(example.picture), style="bold", highlight=False, soft_wrap=True)
    for label, words in (
        ("shows", Text(there, style="dim")),
        ("plain", _marked(plain, example.truth)),
        ("checked", _marked(checked, example.truth)),
    ):
        _say(console, label, words)
        if label == "shows":
            continue
        result = plain if label == "plain" else checked
        wrong = [result.text[m.start : m.end] for m in wrong_mentions(result.text, example.truth)]
        note = f"not there: {', '.join(wrong)}" if wrong else "every object named is there"
        _say(console, "", Text(note, style="red" if wrong else "green"))
    if checked.trace:
        _attempts(console, checked)


def _say(console: Console, label: str, words: Text) -> None:
    """A labelled text: folded to the terminal, or one line where the output goes to a file or a pipe."""
    if not console.is_terminal:
        console.print(Text(f"{label:<7}  ").append_text(words), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=7, style="bold")
    grid.add_column(overflow="fold")
    grid.add_row(label, words)
    console.print(grid)


def _marked(result: Result, truth: Collection[str]) -> Text:
    """The answer with wrong objects in red and phrases that stayed suspect underlined."""
    words = Text(result.text)
    for mention in wrong_mentions(result.text, truth):
        words.stylize("bold red", mention.start, mention.end)
    for phrase in result.phrases:
        if result.resolved is False and phrase.status == "unresolved":
            words.stylize("underline", phrase.start, phrase.end)
    return words


def _attempts(console: Console, result: Result) -> None:
    """What was taken back, in order. The position is the token of the answer that decoding went back to."""
    header = ("phrase", "p(</UN>)", "temperature", "rewound to")
    rows = [
        (
            entry.phrase or f"({entry.kind})",
            "" if entry.p_un is None else f"{entry.p_un:.3f}",
            f"{entry.temperature:.1f}",
            f"token {entry.rewound_to}",
        )
        for entry in result.trace
    ]
    if not console.is_terminal:
        first = max(len(row[0]) for row in [header, *rows])
        console.print("taken back")
        for phrase, *numbers in [header, *rows]:
            line = "  ".join(
                [phrase.ljust(first), *(n.rjust(len(h)) for n, h in zip(numbers, header[1:], strict=True))]
            )
            console.print(Text(line), soft_wrap=True)
        return
    table = Table(title="taken back", title_justify="left", title_style="bold")
    for name in header:
        table.add_column(name, justify="left" if name == "phrase" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
