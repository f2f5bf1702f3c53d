"""`reverse demo`: show answers about unseen pictures, with checking off and on.

    reverse demo                    # in Python: from reverse.demo import show_demo; show_demo(Console())

The pictures come from the `test` split of scenes, which no model is trained on. They are in
`reverse/assets/demo` with their truth (`playground/art/make_demo.py` chose them). A phrase is wrong if its
object is not in the picture. Answers are greedy or seeded: two runs on a machine print the same.
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

__all__ = [
    "MAX_NEW_TOKENS",
    "PROMPT",
    "Example",
    "compare_answers",
    "find_wrong_mentions",
    "load_examples",
    "show_demo",
]

FOLDER = Path(__file__).resolve().parent / "assets" / "demo"
PROMPT = "Describe this image."
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Example:
    """A bundled picture and its objects, COCO name -> count."""

    picture: Path
    truth: dict[str, int]


def load_examples(folder: Path | None = None) -> list[Example]:
    """Return the pictures of `folder` (default: the bundled ones) with the truth of their JSON files.

    Raises MissingFileError if there is none.
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


def find_wrong_mentions(text: str, truth: Collection[str]) -> list[Mention]:
    """Return the objects named in `text` that are not in the picture."""
    return [mention for mention in find_objects(text) if mention.name not in truth]


def compare_answers(
    model: Any, processor: Any, picture: Any, threshold: float | None = None
) -> tuple[Result, Result]:
    """Return the answers of a model with checking off and with checking on."""
    from reverse.api import generate

    def ask(**how: Any) -> Result:
        return generate(
            model, processor, images=picture, prompt=PROMPT, max_new_tokens=MAX_NEW_TOKENS, seed=0, **how
        )

    return ask(mode="plain"), ask(mode="resample", threshold=threshold)


def show_demo(console: Console, name: str = "tiny-llava", threshold: float | None = None) -> None:
    """Print the demonstration of model `name`. The default `threshold` is the checkpoint's."""
    bundled = load_examples()
    from reverse.models import default_threshold, load

    model, processor = load(name)
    limit = default_threshold(model) if threshold is None else threshold
    console.print(
        f"{name}: a phrase is taken back when p(</UN>) > {limit:g}", highlight=False, soft_wrap=True
    )
    before = after = 0
    for example in bundled:
        plain, checked = compare_answers(model, processor, str(example.picture), limit)
        before += len(find_wrong_mentions(plain.text, example.truth))
        after += len(find_wrong_mentions(checked.text, example.truth))
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
        ("plain", _mark_answer(plain, example.truth)),
        ("checked", _mark_answer(checked, example.truth)),
    ):
        _print_labelled(console, label, words)
        if label == "shows":
            continue
        result = plain if label == "plain" else checked
        wrong = [result.text[m.start : m.end] for m in find_wrong_mentions(result.text, example.truth)]
        note = f"not there: {', '.join(wrong)}" if wrong else "every object named is there"
        _print_labelled(console, "", Text(note, style="red" if wrong else "green"))
    if checked.trace:
        _print_attempts(console, checked)


def _print_labelled(console: Console, label: str, words: Text) -> None:
    """Print a labelled text, folded on a terminal and as one line in a file or a pipe."""
    if not console.is_terminal:
        console.print(Text(f"{label:<7}  ").append_text(words), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=7, style="bold")
    grid.add_column(overflow="fold")
    grid.add_row(label, words)
    console.print(grid)


def _mark_answer(result: Result, truth: Collection[str]) -> Text:
    """Return the answer with wrong objects in red and unresolved phrases underlined."""
    words = Text(result.text)
    for mention in find_wrong_mentions(result.text, truth):
        words.stylize("bold red", mention.start, mention.end)
    for phrase in result.phrases:
        if result.resolved is False and phrase.status == "unresolved":
            words.stylize("underline", phrase.start, phrase.end)
    return words


def _print_attempts(console: Console, result: Result) -> None:
    """Print the rejected phrases in order, with the token position that decoding went back to."""
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
