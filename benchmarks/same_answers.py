"""Whether a changed engine still gives the answers of an earlier one: record them, compare them later.

    python benchmarks/same_answers.py record reference.jsonl.gz              # CPU, about 40 minutes
    python benchmarks/same_answers.py compare reference.jsonl.gz             # decodes again: as long
    python benchmarks/same_answers.py compare reference.jsonl.gz --count 40 --only "tiny-qwen commit=phrase"

Both bundled models describe test scenes in float32, in batches of 8, with the scene's number as the seed and
with thresholds so low that answers are corrected several times. There is one setting for every combination
of commit, hints, candidates, and greedy decoding or sampling: 48 in all. Only `reverse.load` and
`reverse.generate` are called, so a reference outlives a rewrite of what is behind them.

The file is a sequence of gzip members. Each holds one line of JSON: a setting and its answers. A member is
written and synced as soon as its setting is done; a torn member at the end is cut off, so `record` goes on
where it was stopped.

`compare` counts the answers of each setting whose ids, traces and endings (finish_reason, resolved, phrases)
are equal; p is left out there, and its largest difference is given. It exits with 1 if anything differs, or
if p differs by more than `--tolerance`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import reverse
from reverse.data.scenes import make_scene, render_scene
from reverse.progress import show_progress

PROMPT = "Describe this image."
THRESHOLDS = {"tiny-llava": 0.003, "tiny-qwen": 0.002}  # 10 corrections an answer, a fifth unresolved
MAX_NEW_TOKENS = 96
BATCH_SIZE = 8
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Setting:
    """One way of decoding."""

    model: str
    commit: str
    hints: int
    candidates: int
    is_sampled: bool

    @property
    def name(self) -> str:
        how = "sampled" if self.is_sampled else "greedy"
        return f"{self.model} commit={self.commit} hints={self.hints} candidates={self.candidates} {how}"


def list_settings(only: str = "") -> list[Setting]:
    """All combinations whose name holds `only`."""
    combinations = product(THRESHOLDS, ("phrase", "sentence", "answer"), (0, 5), (1, 4), (False, True))
    return [setting for each in combinations if only in (setting := Setting(*each)).name]


class Decoder:
    """Answers about the first test scenes; a model is loaded when a setting first needs it."""

    def __init__(self) -> None:
        self.loaded: dict[str, tuple[Any, Any]] = {}
        self.pictures: list[Any] = []

    def decode(self, setting: Setting, count: int, progress: Callable[[int], None]) -> list[dict[str, Any]]:
        """What is compared of `count` answers, as plain values."""
        if setting.model not in self.loaded:
            self.loaded[setting.model] = reverse.load(setting.model)
        while len(self.pictures) < count:
            self.pictures.append(Image.fromarray(render_scene(make_scene("test", len(self.pictures)))))
        model, processor = self.loaded[setting.model]
        results = reverse.generate(
            model,
            processor,
            images=self.pictures[:count],
            prompt=PROMPT,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=BATCH_SIZE,
            seed=list(range(count)),
            progress=progress,
            threshold=THRESHOLDS[setting.model],
            commit=setting.commit,
            hints=setting.hints,
            candidates=setting.candidates,
            **({"do_sample": True, "temperature": TEMPERATURE} if setting.is_sampled else {}),
        )
        return [describe(result) for result in results]


def describe(result: Any) -> dict[str, Any]:
    """A result without its timings and counts, as it is read back from JSON."""
    whole = result.to_dict()
    for entry in whole["trace"]:
        del entry["seconds"]
    kept = {key: whole[key] for key in ("ids", "finish_reason", "resolved", "phrases", "trace")}
    return json.loads(json.dumps(kept))


def read_members(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The settings of a file with their answers, and the length in bytes of its whole members."""
    data = path.read_bytes() if path.exists() else b""
    found: list[dict[str, Any]] = []
    end = 0
    while end < len(data):
        member = zlib.decompressobj(wbits=31)
        text = member.decompress(data[end:])
        if not member.eof:
            break
        end = len(data) - len(member.unused_data)
        found.append(json.loads(text))
    return found, end


def append_member(path: Path, content: dict[str, Any]) -> None:
    """Append one member and sync it."""
    with path.open("ab") as stream:
        stream.write(gzip.compress(json.dumps(content).encode(), mtime=0))
        stream.flush()
        os.fsync(stream.fileno())


def record(path: Path, greedy: int, sampled: int, only: str) -> None:
    """Decode the settings that are not in the file yet."""
    known, end = read_members(path)
    if path.exists():
        os.truncate(path, end)
    done = {Setting(**each["setting"]).name for each in known}
    todo = [setting for setting in list_settings(only) if setting.name not in done]
    counts = {setting: sampled if setting.is_sampled else greedy for setting in todo}
    decoder = Decoder()
    with show_progress("answers", sum(counts.values())) as progress:
        finished = 0

        def advance(n: int) -> None:
            nonlocal finished
            finished += n
            progress(finished)

        for setting, count in counts.items():
            answers = decoder.decode(setting, count, advance)
            made_with = {"reverse": reverse.__version__, "torch": torch.__version__}
            append_member(path, {"setting": asdict(setting), "made_with": made_with, "answers": answers})
            rewinds = sum(len(answer["trace"]) for answer in answers)
            print(f"{setting.name}: {count} answers, {rewinds} rewinds", flush=True)


@dataclass
class Comparison:
    """The answers of one setting, then and now."""

    answers: int
    same_ids: int = 0
    same_traces: int = 0
    same_endings: int = 0
    p_difference: float = 0.0  # the largest, over phrases and trace entries that stand at the same place

    def is_equal(self, tolerance: float) -> bool:
        same = {self.same_ids, self.same_traces, self.same_endings} == {self.answers}
        return same and self.p_difference <= tolerance


def split_p(entries: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float | None]]:
    """Phrases or trace entries without p, and their p."""
    rest = [{key: value for key, value in entry.items() if key != "p_un"} for entry in entries]
    return rest, [entry["p_un"] for entry in entries]


def compare_answers(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> Comparison:
    """Count equal answers. A p that is None on one side only counts as a difference of 1."""
    found = Comparison(len(then))
    for old, new in zip(then, now, strict=True):
        parts = {}
        for key in ("phrases", "trace"):
            (old_rest, old_p), (new_rest, new_p) = split_p(old[key]), split_p(new[key])
            parts[key] = old_rest == new_rest
            if not parts[key]:
                continue
            for a, b in zip(old_p, new_p, strict=True):
                difference = float(a is not b) if a is None or b is None else abs(a - b)
                found.p_difference = max(found.p_difference, difference)
        ending = all(old[key] == new[key] for key in ("finish_reason", "resolved"))
        found.same_ids += old["ids"] == new["ids"]
        found.same_traces += parts["trace"]
        found.same_endings += ending and parts["phrases"]
    return found


def list_differences(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines about the answers that differ: the first part of each that does."""
    for scene, (old, new) in enumerate(zip(then, now, strict=True)):
        for key in ("trace", "ids", "finish_reason", "resolved", "phrases"):
            a, b = old[key], new[key]
            if key in ("trace", "phrases"):
                a, b = split_p(a)[0], split_p(b)[0]
            if a == b:
                continue
            if isinstance(a, list):
                at = next(
                    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
                )
                yield (
                    f"scene {scene}: {key} of {len(a)} and now {len(b)} differ from number {at} on: "
                    f"{a[at : at + 1]}, now {b[at : at + 1]}"
                )
            else:
                yield f"scene {scene}: {key} was {a}, is {b}"
            break


def compare(path: Path, count: int | None, only: str, shown: int, tolerance: float) -> bool:
    """Decode what a file holds again and say what differs; returns whether all is equal."""
    known, _ = read_members(path)
    pairs = [(Setting(**each["setting"]), each["answers"][:count]) for each in known]
    pairs = [(setting, answers) for setting, answers in pairs if only in setting.name]
    if not pairs:
        raise SystemExit(f"{path} holds no setting whose name has {only!r} in it: see `list_settings`")
    decoder, comparisons, told = Decoder(), [], 0
    with show_progress("answers", sum(len(answers) for _, answers in pairs)) as progress:
        finished = 0

        def advance(n: int) -> None:
            nonlocal finished
            finished += n
            progress(finished)

        for setting, answers in pairs:
            now = decoder.decode(setting, len(answers), advance)
            found = compare_answers(answers, now)
            comparisons.append(found)
            print(
                f"{setting.name}: of {found.answers} answers {found.same_ids} same ids, {found.same_traces} "
                f"same traces, {found.same_endings} same endings; p differs by {found.p_difference:.1e}",
                flush=True,
            )
            for line in list_differences(answers, now):
                if told == shown:
                    break
                told += 1
                print(f"  {line}", flush=True)
    total = {
        key: sum(getattr(each, key) for each in comparisons)
        for key in ("answers", "same_ids", "same_traces", "same_endings")
    }
    largest = max(each.p_difference for each in comparisons)
    print(json.dumps({"settings": len(pairs), **total, "p_difference": largest}))
    return all(each.is_equal(tolerance) for each in comparisons)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="decode and write the answers")
    recording.add_argument("--greedy", type=int, default=200, help="scenes of a greedy setting")
    recording.add_argument("--sampled", type=int, default=50, help="scenes of a sampled setting")
    comparing = commands.add_parser("compare", help="decode again and say what differs")
    comparing.add_argument("--count", type=int, help="the first scenes of each setting only")
    comparing.add_argument("--shown", type=int, default=10, help="differences that are printed")
    comparing.add_argument("--tolerance", type=float, default=1e-5, help="of p")
    for each in (recording, comparing):
        each.add_argument("file", type=Path, help="answers, .jsonl.gz")
        each.add_argument("--only", default="", help="settings whose name holds this")
    given = parser.parse_args()
    if given.command == "record":
        record(given.file, given.greedy, given.sampled, given.only)
    elif not compare(given.file, given.count, given.only, given.shown, given.tolerance):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
