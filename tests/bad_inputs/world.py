"""What bad inputs are tried on: a model that is loaded once, and good files beside the bad ones.

world.fill("--image {kitchen} --threshold 3")
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import reverse
from reverse.models.checkpoints.loading import ASSETS

JSONL = (".jsonl",)


class World(dict):  # type: ignore[type-arg]
    """Good and bad things by name, each made when it is asked for; used with `str.format_map`."""

    def __init__(self, root: Path):
        super().__init__()
        self.root = root
        self.count = 0
        self._load = reverse.load
        self._loaded: dict[str, Any] = {}

    def fill(self, words: str) -> list[str]:
        """The words of a command, names in braces replaced."""
        return [word.format_map(self).replace("␣", " ") for word in words.split()]

    def run(self, words: str, **environment: str | None) -> Any:
        """The result of a command, in this process."""
        from typer.testing import CliRunner

        from reverse.cli import app

        return CliRunner().invoke(app, self.fill(words), env=environment)

    def __missing__(self, name: str) -> Any:
        if name == "new":  # a path where nothing is yet, another one each time
            self.count += 1
            return str(self.root / f"new{self.count}")
        made = getattr(self, f"make_{name}")()
        self[name] = made
        return made

    # ------------------------------------------------------------------ models
    def load(self, name: Any, **options: Any) -> Any:
        """`reverse.load`, once for each bundled model; stands in its place while entries are tried."""
        if name not in ("tiny-llava", "tiny-qwen") or set(options) - {"device", "dtype"}:
            return self._load(name, **options)
        if str(options.get("device") or "cpu") != "cpu" or options.get("dtype") is not None:
            return self._load(name, **options)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def make_llava(self) -> Any:
        return self.load("tiny-llava")

    def make_qwen(self) -> Any:
        return self.load("tiny-qwen")

    def make_untagged(self) -> str:
        """A checkpoint without the three tokens."""
        from experiments.tiny_models import build_tiny_llava

        path = self.root / "untagged"
        model, processor = build_tiny_llava(seed=0)
        model.save_pretrained(path)
        processor.save_pretrained(path)
        return str(path)

    def copy_of_model(self, name: str = "tiny-llava") -> Path:
        self.count += 1
        return Path(shutil.copytree(ASSETS / name, self.root / f"model{self.count}"))

    # ------------------------------------------------------------------ files
    def make_scenes(self) -> str:
        from reverse.data.scenes.benchmark_files import write_benchmarks

        path = self.root / "scenes"
        write_benchmarks(path, "test", 3, 0)
        return str(path)

    def make_kitchen(self) -> str:
        return str(next((Path(self["scenes"]) / "images").glob("*.png")))

    def make_records(self) -> str:
        return str(Path(self["scenes"]) / "instruct.json")

    def make_answers(self) -> str:
        """Answers about the scenes with checking off, of several benchmarks."""
        out = self.root / "answers"
        words = f"--mode plain --model tiny-llava --data {self['scenes']} --out {out}"
        result = self.run(f"eval chair pope amber-d mme-hall {words}")
        if result.exit_code:
            raise AssertionError(f"eval failed: {result.output} {result.exception!r}")
        return str(out)

    def make_pope(self) -> str:
        return str(Path(self["answers"]) / "pope.jsonl")

    def make_chair(self) -> str:
        return str(Path(self["answers"]) / "chair.jsonl")

    def make_scored(self) -> str:
        path = self.root / "pope.json"
        result = self.run(f"score {{pope}} --truth {{scenes}} --partial --rounds 10 --save {path}")
        if result.exit_code:
            raise AssertionError(f"score failed: {result.output} {result.exception!r}")
        return str(path)

    def make_recipe(self) -> str:
        path = self.root / "recipe.yaml"
        settings = {
            "model": str(ASSETS / "tiny-llava"),
            "output": str(self.root / "trained"),
            "data": {"records": self["records"], "images": self["scenes"], "workers": 0},
            "tune": {"method": "lora", "rank": 2, "alpha": 4},
            "optim": {"steps": 1, "batch": 1, "global_batch": 1},
            "compute": {"precision": "float32", "weights": "float32"},
            "log": {"steps": 1, "save_steps": 0},
        }
        path.write_text(json.dumps(settings))
        return str(path)

    def make_empty_folder(self) -> str:
        path = self.root / "empty"
        path.mkdir(exist_ok=True)
        return str(path)

    def make_busy_folder(self) -> str:
        path = self.root / "busy"
        path.mkdir(exist_ok=True)
        (path / "notes.txt").write_text("mine")
        return str(path)

    def make_notes(self) -> str:
        path = self.root / "notes.txt"
        path.write_text("a dog\n")
        return str(path)

    def make_missing(self) -> str:
        return str(self.root / "nowhere" / "nothing.json")

    # ------------------------------------------------------------------ bad files
    def bad(self, kind: str, suffix: str, good: bytes = b"") -> Path:
        """A file (or folder, or nothing) that is bad in one way; a name that tells which."""
        self.count += 1
        path = self.root / f"bad{self.count}-{kind}{suffix}"
        if kind == "missing":
            return path
        if kind == "folder":
            path.mkdir()
            return path
        if kind == "loop":
            os.symlink(path, path)
            return path
        path.write_bytes(_content(kind, good, suffix in JSONL))
        return path


def _content(kind: str, good: bytes, lines: bool) -> bytes:
    end = b"\n" if lines else b""
    if kind == "truncated":
        return good[: max(1, int(len(good) * 0.6))]
    if kind == "latin1":
        return good.replace(b"a", "é".encode("latin-1"), 3)
    if kind == "utf16":
        return good.decode("utf-8").encode("utf-16")
    if kind == "zeros":
        return good[:20] + bytes(200)
    return {
        "empty": b"",
        "blank": b"\n\n",
        "bom": b"\xef\xbb\xbf",
        "null": b"null" + end,
        "number": b"7" + end,
        "text": b'"a dog"' + end,
        "list": b"[]" + end,
        "object": b"{}" + end,
        "list_of_null": b"[null]" + end,
        "binary": bytes(range(256)) * 4,
        "deep": b"[" * 50_000 + end,
        "prose": b"This is not what you are looking for.\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>\n",
        "huge_number": b'{"a": ' + b"9" * 6000 + b"}" + end,
        "long_line": b'{"question_id": "' + b"x" * 300_000 + end,
    }[kind]


FILE_KINDS = (
    "missing",
    "folder",
    "empty",
    "blank",
    "bom",
    "null",
    "number",
    "text",
    "list",
    "object",
    "list_of_null",
    "binary",
    "deep",
    "prose",
    "html",
    "huge_number",
    "long_line",
    "truncated",
    "latin1",
    "utf16",
    "zeros",
)
