"""Report what a file of records holds and what is wrong with it, in one pass.

    report = check_set("reverse_1.3m", images="playground/data")
    report.counts["answers"], report.malformed, report.ok

`reverse.data.records.record_rules` decides what is wrong, as it does for training. 1.3 million records take
about a minute on one core.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reverse.data.pictures.opening import find_missing_images, open_image, resolve_image
from reverse.data.records.published_set import Progress, read_manifest, records_path, scan_records
from reverse.data.records.record_rules import find_faults
from reverse.data.records.schema import IMAGE_TOKEN, pictures_of
from reverse.errors import DataError
from reverse.files.cell_values import describe
from reverse.files.json_scanning import Broken, JsonItem
from reverse.files.text_reading import replace_surrogates
from reverse.tokens.spans import CN, SPAN, UN

EXAMPLES = 10  # of each kind of problem; all are counted
TOKEN_SAMPLE = 20_000  # records whose tokens are counted
LONGEST_NAME = 80  # characters of the name of a source or type in the report
PERCENTILES = (50, 90, 95, 99, 100)
COLUMNS = ("answers", "confident", "unconfident", "negatives", "hints")
TEXT_ONLY = "text-only"
UNUSABLE = ("missing", "refused", "damaged")  # pictures: absent, outside of their root, or not decodable
_TEXT_AFTER_UN = re.compile(rf"{UN}\s*\S", re.ASCII)


@dataclass
class Report:
    """What `check_set` found. Indices are those of the records in the file, from 0.

    `sources` (by folder of the picture) and `types` (by `A_type`) hold counts named in `COLUMNS`: answers,
    phrases closed by `</CN>` and by `</UN>`, answers with `</UN>`, answers with a hint. Sources also count
    their `records`.
    """

    path: str
    counts: dict[str, int] = field(default_factory=dict)
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    types: dict[str, dict[str, int]] = field(default_factory=dict)
    broken: list[dict[str, Any]] = field(default_factory=list)
    malformed: dict[str, dict[str, Any]] = field(default_factory=dict)  # kind of fault: count and examples
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)  # unusual, not wrong: count and examples
    pictures: dict[str, Any] | None = None
    tokens: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether there are records, none is broken, training refuses none, and every picture is usable."""
        wrong = not self.counts["records"] or self.counts["broken"] or self.malformed
        return not (wrong or (self.pictures and any(self.pictures[kind] for kind in UNUSABLE)))

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok} | self.__dict__


def check_set(
    path: str | Path,
    *,
    images: str | Path | None = None,
    tokenizer: Any = None,
    token_sample: int = TOKEN_SAMPLE,
    seed: int = 0,
    decode: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Read all records of a file or folder and report on them.

    Args:
        images: folder that the pictures' paths are relative to; None: pictures are not looked for, except
            those of a folder of scenes.
        tokenizer: of transformers; counts the tokens of `token_sample` records drawn by `seed`.
        decode: decode every picture as training does; False: check only that they exist.
        progress: is called with what is read and the total, in bytes of a file or records of an imported set;
            then with the pictures that are decoded and their number.

    Raises MissingFileError and DataError as `open_records`; broken records are counted, not raised.
    """
    where = records_path(path)
    if images is None and where != Path(path):
        images = path
    if images is not None and not Path(images).is_dir():
        raise DataError(f"--images {images} is not a folder: name what the records' pictures are relative to")
    if token_sample < 0:
        raise DataError(f"token_sample must be at least 0, got {token_sample}: 0 counts no tokens")
    counter = _RecordCounter(Report(str(path)), token_sample if tokenizer is not None else 0, seed)
    for item in scan_records(where, progress):
        if isinstance(item, Broken):
            counter.add_broken(item)
        else:
            counter.add(item)
    report = counter.finish()
    if where.is_dir():
        report.counts["left_out"] = read_manifest(where)["left_out"]
    if images is not None:
        report.pictures = _check_pictures(Path(images), counter, decode, progress)
    if tokenizer is not None:
        report.tokens = _count_tokens(tokenizer, counter.sample, seed)
    return report


def source_of(image: str | None) -> str:
    """Return the first folder of a picture's path: coco, vg, ocr_vqa, gqa, textvqa, …"""
    if not image:
        return TEXT_ONLY
    folder, slash, _ = image.removeprefix("./").partition("/")
    return folder[:LONGEST_NAME] if slash else "(no folder)"


class _RecordCounter:
    """The counters of one pass over the records."""

    def __init__(self, report: Report, sample: int, seed: int):
        self.report = report
        self.records = self.broken = 0
        self.source_records: Counter[str] = Counter()
        self.sources: dict[str, list[int]] = {}  # by source, the numbers of COLUMNS
        self.types: dict[str, list[int]] = {}  # by answer type, the same
        self.single_pictures: Counter[str] = Counter()  # of each picture, the records that have it alone
        self.picture_lists: Counter[tuple[str, ...]] = Counter()  # of each list, the records that have it
        self.first: dict[str, int] = {}  # index of the first record with the picture
        self.sample: list[str] = []
        self.sample_size = sample
        self.rng = random.Random(f"{seed} tokens")

    def add_broken(self, item: Broken) -> None:
        self.broken += 1
        if self.broken <= EXAMPLES:
            found = {"index": item.number, "offset": item.offset, "where": item.where, "reason": item.reason}
            self.report.broken.append(found)

    def add(self, item: JsonItem) -> None:
        record = item.value
        names = pictures_of(record)
        source = source_of(names[0] if names else None)
        self.source_records[source] += 1
        self._add_pictures(item, names)
        source_row = self.sources.setdefault(source, [0] * len(COLUMNS))
        for k, answer in enumerate(record["conversations"][1::2]):
            text = answer["value"]
            confident, unconfident = text.count(CN), text.count(UN)
            kind = (answer.get("A_type") or "(none)")[:LONGEST_NAME]
            for row in (source_row, self.types.setdefault(kind, [0] * len(COLUMNS))):
                row[0] += 1
                row[1] += confident
                row[2] += unconfident
                row[3] += unconfident > 0
                row[4] += bool(answer.get("hint"))
            if unconfident and _TEXT_AFTER_UN.search(text):
                self._add_example(self.report.notes, "text_after_un", item, k, text, text.find(UN))
        for fault in find_faults(record):
            self._add_example(self.report.malformed, fault.kind, item, fault.turn, fault.text, fault.offset)
        if self.sample_size:
            self._sample(record)
        self.records += 1

    def _add_pictures(self, item: JsonItem, names: list[str]) -> None:
        if not names:
            return
        if len(names) == 1:
            self.single_pictures[names[0]] += 1
        else:
            self.picture_lists[tuple(names)] += 1
        for name in names:
            self.single_pictures.setdefault(name, 0)
            self.first.setdefault(name, item.number)
        asked = item.value["conversations"][: 2 if len(names) == 1 else None : 2]
        if not any(IMAGE_TOKEN in turn["value"] for turn in asked):
            self._add_example(self.report.notes, "picture_not_asked_about", item, 0, asked[0]["value"], 0)

    def _sample(self, record: dict[str, Any]) -> None:
        """Keep the record's text with the same chance for every record (reservoir sampling)."""
        at = self.records if self.records < self.sample_size else self.rng.randrange(self.records + 1)
        if at < self.sample_size:
            text = replace_surrogates("\n".join(turn["value"] for turn in record["conversations"]))
            self.sample[at : at + 1] = [text]

    def _add_example(
        self, among: dict[str, dict[str, Any]], kind: str, item: JsonItem, turn: int, text: str, at: int
    ) -> None:
        seen = among.setdefault(kind, {"count": 0, "examples": []})
        seen["count"] += 1
        if len(seen["examples"]) < EXAMPLES:
            begin = max(0, at - 30)
            shown = ("…" if begin else "") + text[begin : at + 50] + ("…" if at + 50 < len(text) else "")
            name = item.value.get("id")
            if not isinstance(name, (int, float)) and len(str(name)) > LONGEST_NAME:
                name = describe(name, LONGEST_NAME)  # an id of absurd length is cut short
            seen["examples"].append({"index": item.number, "id": name, "turn": turn, "text": shown})

    def count_records_with(self, names: Sequence[str]) -> int:
        """Count the records that have at least one of these pictures."""
        wanted = set(names)
        single = sum(self.single_pictures[name] for name in wanted)
        return single + sum(n for some, n in self.picture_lists.items() if not wanted.isdisjoint(some))

    def finish(self) -> Report:
        report = self.report
        sources = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in self.sources.items()}
        types = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in self.types.items()}
        sources = {name: {"records": self.source_records[name]} | row for name, row in sources.items()}
        report.sources = _sort_by(sources, "records")
        report.types = _sort_by(types, "answers")
        totals = {column: sum(row[column] for row in types.values()) for column in COLUMNS}
        pictures = len(self.single_pictures)
        report.counts = {"records": self.records, "broken": self.broken, "pictures": pictures} | totals
        return report


def _sort_by(rows: dict[str, dict[str, int]], column: str) -> dict[str, dict[str, int]]:
    """Sort rows by a number, the largest first."""
    return dict(sorted(rows.items(), key=lambda named: (-named[1][column], named[0])))


def _check_pictures(
    root: Path, counter: _RecordCounter, decode: bool, progress: Progress | None
) -> dict[str, Any]:
    """Report which pictures are missing, which paths leave the root, and which files cannot be decoded."""
    images = counter.single_pictures
    missing, refused = find_missing_images(root, images)
    lost = {*missing, *refused}
    damaged = _find_damaged(root, [name for name in images if name not in lost], progress) if decode else {}
    reasons = refused | damaged
    found: dict[str, Any] = {"root": str(root), "different": len(images), "decoded": decode}
    for kind, names in zip(UNUSABLE, (missing, list(refused), list(damaged)), strict=True):
        examples = [
            {"index": counter.first[name], "image": name}
            | ({"reason": reasons[name]} if name in reasons else {})
            for name in names[:EXAMPLES]
        ]
        records = counter.count_records_with(names)
        found |= {kind: len(names), f"{kind}_records": records, f"{kind}_examples": examples}
    return found


def _find_damaged(root: Path, names: Sequence[str], progress: Progress | None) -> dict[str, str]:
    """Decode pictures in threads (decoders release the interpreter); return why each damaged one fails."""

    def decode(name: str) -> str | None:
        try:
            open_image(resolve_image(root, name))
        except (ValueError, OSError) as error:
            return str(error)
        return None

    found: dict[str, str] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), 256):
            some = names[start : start + 256]
            for name, reason in zip(some, pool.map(decode, some), strict=True):
                if reason is not None:
                    found[name] = reason
            if progress is not None:
                progress(start + len(some), len(names))
    return found


def _count_tokens(tokenizer: Any, texts: list[str], seed: int) -> dict[str, Any]:
    """Report the number of tokens of the records' turns, without template and picture."""
    lengths: list[int] = []
    for start in range(0, len(texts), 1000):
        ids = tokenizer(texts[start : start + 1000], add_special_tokens=False)["input_ids"]
        lengths += [len(one) for one in ids]
    known = all(len(tokenizer(tag, add_special_tokens=False)["input_ids"]) == 1 for tag in (SPAN, CN, UN))
    values = np.percentile(lengths, PERCENTILES) if lengths else np.zeros(len(PERCENTILES))
    return {
        "records": len(texts), "seed": seed, "mean": float(np.mean(lengths)) if lengths else 0.0,
        "percentiles": {str(p): float(v) for p, v in zip(PERCENTILES, values, strict=True)},
        "tags_are_tokens": known,
    }  # fmt: skip
