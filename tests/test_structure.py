"""Names and sizes of the package. Layers and import cycles: tests/docs/test_layers.py."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reverse"

MOST_FILES = 14  # of a folder, `__init__.py` left out; about twelve are the aim
# Names that were replaced by standard ones: they must not come back.
OLD_NAMES = [
    "_Asking",
    "telling",
    "settled",
    "lock_of",
    "_Turns",
    "adopt",
    "sister_stands_for",
    "_halve",
    "ChosenBackend",
    "ShownText",
    "half_character",
    "upcoming",
    "Strand",
    "_Lane",
    "same_dice",
    "_keep_dicing",
    "emptied",
    "whole_file",
    "whole_folder",
    "Contender",
    "_Glance",
    "looked_at_again",
    "inputs_as_they_are",
    "unsayable",
    "Diet",
    "Slab",
    "Pace",
    "windows_at_once",
    "_hush",
    "half_pair",
    "whole_text",
    "sentence_checkpoints",
]


@cache
def modules() -> dict[str, Path]:
    """Dotted name of every module and package, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_public_class_names_are_unique() -> None:
    """Two classes with one name cannot be told apart where they are used."""
    names = Counter(
        node.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_folders_can_be_overlooked() -> None:
    """A folder of thirty files has no structure."""
    sizes = Counter(path.parent for path in modules().values() if path.stem != "__init__")
    assert not [f"{folder}: {count}" for folder, count in sizes.items() if count > MOST_FILES]


@pytest.mark.parametrize("folder", ["reverse", "experiments", "benchmarks", "tests"])
def test_replaced_names_do_not_come_back(folder: str) -> None:
    """A reader would have to learn two words for one thing."""
    found = []
    for path in (ROOT / folder).rglob("*.py"):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "name", None) or getattr(node, "id", None) or getattr(node, "attr", None)
            if name in OLD_NAMES:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not found
