"""What is in a file of records, and what is wrong with it: one pass, batches of strings in Arrow.

    report = check("reverse_1.3m", images="playground/data")
    report.counts["answers"], report.malformed, report.ok

Records that are good beyond doubt are recognised by regular expressions over whole columns; the others, few,
are looked at by `reverse.data.records.record_faults`, as training does. 1.3 million records take about a
minute a core.
"""

import os
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reverse.data.pictures.opening import look_for_images, open_image, resolve_image
from reverse.data.records.published_set import Progress, arrow, read_manifest, records_path, scan_records
from reverse.data.records.record_faults import NOT_ASKED, faults
from reverse.data.records.record_keys import may_be_unseen, picture_of, pictures_of
from reverse.data.records.schema import IMAGE_TOKEN, half_pair, shorten, whole_text
from reverse.errors import DataError
from reverse.files.json_scanning import Broken, Item
from reverse.tokens.spans import BLANKS, CN, SPAN, UN, WELL_FORMED

BATCH = 8192  # records
EXAMPLES = 10  # of each kind of problem; all are counted
TOKEN_SAMPLE = 20_000  # records of which tokens are counted
NAME = 80  # characters of the name of a source or type in the report
PERCENTILES = (50, 90, 95, 99, 100)
COLUMNS = ("answers", "confident", "unconfident", "negatives", "hints")
TEXT_ONLY = "text-only"
UNUSABLE = ("missing", "refused", "damaged")  # pictures: not there, outside of their root, not to be decoded

_WELL_FORMED = rf"\A{WELL_FORMED}\z"
_BLANK = rf"\A[{BLANKS}]*\z"
_GOES_ON = rf"{UN}\s*\S"


@dataclass
class Report:
    """What `check` found. Indices are those of the records in the file, from 0.

    `sources` and `types` hold, by folder of the picture and by `A_type`, the numbers of `COLUMNS` (and the
    records of a source): answers, phrases closed by `</CN>` and by `</UN>`, answers with `</UN>`, answers
    with a hint.
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
        """Whether there are records, none broken, none that training refuses, every picture there."""
        wrong = not self.counts["records"] or self.counts["broken"] or self.malformed
        return not (wrong or (self.pictures and any(self.pictures[kind] for kind in UNUSABLE)))

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok} | self.__dict__


def check(
    path: str | Path,
    *,
    images: str | Path | None = None,
    tokenizer: Any = None,
    token_sample: int = TOKEN_SAMPLE,
    seed: int = 0,
    decode: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Read all records of a file or folder and say what they are.

    Args:
        images: what the records' pictures are relative to; None: pictures are not looked for, except those
            of a folder of scenes.
        tokenizer: of transformers; counts the tokens of `token_sample` records drawn by `seed`.
        decode: decode every picture as training does; False: see only that they are there.
        progress: called with what is read and the whole, in bytes of a file or records of an imported set;
            then with pictures that are decoded and all of them.

    Raises FileNotFoundError and ValueError as `open_records`; broken records are counted, not raised.
    """
    where = records_path(path)
    if images is None and where != Path(path):
        images = path
    if images is not None and not Path(images).is_dir():
        raise DataError(f"--images {images} is no folder: name what the records' pictures are relative to")
    if token_sample < 0:
        raise DataError(f"token_sample must be at least 0, got {token_sample}: 0 counts no tokens")
    counting = _Counting(Report(str(path)), token_sample if tokenizer is not None else 0, seed)
    batch: list[Item] = []
    for item in scan_records(where, progress):
        if isinstance(item, Broken):
            counting.add_broken(item)
            continue
        batch.append(item)
        if len(batch) == BATCH:
            counting.add(batch)
            batch = []
    counting.add(batch)
    report = counting.finish()
    if where.is_dir():
        report.counts["left_out"] = read_manifest(where)["left_out"]
    if images is not None:
        report.pictures = _pictures(Path(images), counting, decode, progress)
    if tokenizer is not None:
        report.tokens = _tokens(tokenizer, counting.sample, seed)
    return report


def source_of(image: str | None) -> str:
    """The folder that a picture's path begins with: coco, vg, ocr_vqa, gqa, textvqa, …"""
    if not image:
        return TEXT_ONLY
    folder, slash, _ = image.removeprefix("./").partition("/")
    return folder[:NAME] if slash else "(no folder)"


class _Counting:
    """The counters of one pass."""

    def __init__(self, report: Report, sample: int, seed: int):
        self.report = report
        self.records = self.broken = 0
        self.source_codes: dict[str, int] = {}
        self.type_codes: dict[str, int] = {}
        self.source_records: Counter[str] = Counter()
        self.by_source: Counter[tuple[int, str]] = Counter()
        self.by_type: Counter[tuple[int, str]] = Counter()
        self.images: Counter[str] = Counter()  # of each picture, the records that have it alone
        self.several: Counter[tuple[str, ...]] = Counter()  # the records that have these pictures
        self.first: dict[str, int] = {}  # index of a record with the picture, kept of few
        self.sample: list[str] = []
        self.sample_size = sample
        self.rng = random.Random(f"{seed} tokens")

    def add_broken(self, item: Broken) -> None:
        self.broken += 1
        if self.broken <= EXAMPLES:
            found = {"index": item.number, "offset": item.offset, "where": item.where, "reason": item.reason}
            self.report.broken.append(found)

    def add(self, batch: list[Item]) -> None:
        pc = arrow().compute

        if not batch:
            return
        records = [item.value for item in batch]
        self._add_records(batch)
        said = [turn for record in records for turn in record["conversations"][1::2]]
        asked = [turn["value"] for record in records for turn in record["conversations"][::2]]
        turns = np.array([len(record["conversations"]) // 2 for record in records])
        of = np.repeat(np.arange(len(records)), turns)  # (answers,): which record
        turn = np.arange(len(said)) - np.repeat(np.cumsum(turns) - turns, turns)

        values = _strings([answer["value"] for answer in said])
        columns = {
            "answers": np.ones(len(said), dtype=np.int64),
            "confident": pc.count_substring(values, CN).to_numpy(),
            "unconfident": (unconfident := pc.count_substring(values, UN).to_numpy()),
            "negatives": (unconfident > 0).astype(np.int64),
            "hints": np.array([bool(answer.get("hint")) for answer in said], dtype=np.int64),
        }
        sources = np.array([_code(self.source_codes, source_of(picture_of(r))) for r in records])
        types = np.array(
            [_code(self.type_codes, (answer.get("A_type") or "(none)")[:NAME]) for answer in said]
        )
        _count(self.by_source, sources[of], columns)
        _count(self.by_type, types, columns)

        for k in self._doubtful(records, asked, said, values, of, turn):
            for fault in faults(records[k]):
                self._found(self.report.malformed, fault.kind, batch[k], fault.turn, fault.text, fault.offset)
        for k in _rows(pc.match_substring_regex(values, _GOES_ON)):
            place = (batch[of[k]], int(turn[k]), said[k]["value"])
            self._found(self.report.notes, "text_after_un", *place, place[2].find(UN))

    def _doubtful(
        self,
        records: list[dict[str, Any]],
        asked: list[str],
        said: list[dict[str, Any]],
        values: Any,
        of: np.ndarray,
        turn: np.ndarray,
    ) -> list[int]:
        """The records that are not good beyond doubt, among them all that have a fault."""
        pc = arrow().compute
        questions = _strings(asked)
        shown = np.array([picture_of(record) is not None for record in records])
        about_picture = shown[of] & (turn == 0)
        masks = [
            ~_mask(pc.match_substring_regex(values, _WELL_FORMED)),
            _mask(pc.match_substring_regex(values, _BLANK)),
            _mask(pc.match_substring_regex(questions, NOT_ASKED)),
            _mask(pc.match_substring_regex(questions, _BLANK)) & ~about_picture,
            pc.count_substring(questions, IMAGE_TOKEN).to_numpy() > about_picture,
            np.array([
                bool(half_pair(question) or half_pair(answer["value"]) or half_pair(answer.get("hint") or ""))
                for question, answer in zip(asked, said, strict=True)
            ]),
            np.array([may_be_unseen(record) for record in records])[of],
        ]  # fmt: skip
        return np.unique(of[np.logical_or.reduce(masks)]).tolist()

    def _add_records(self, batch: list[Item]) -> None:
        for item in batch:
            record = item.value
            image = picture_of(record)
            self.source_records[source_of(image)] += 1
            names = [] if image is None else pictures_of(record)
            if len(names) == 1:
                self.images[names[0]] += 1
            elif names:
                self.several[tuple(names)] += 1
            for name in names:
                self.images.setdefault(name, 0)
                self.first.setdefault(name, item.number)
            asked = record["conversations"][: 2 if len(names) == 1 else None : 2]
            first = asked[0]["value"]
            if names and not any(IMAGE_TOKEN in turn["value"] for turn in asked):
                self._found(self.report.notes, "picture_not_asked_about", item, 0, first, 0)
            if self.sample_size:
                self._sample(record)
            self.records += 1

    def _sample(self, record: dict[str, Any]) -> None:
        """Each record has the same chance to be among the sample, however many come."""
        at = self.records if self.records < self.sample_size else self.rng.randrange(self.records + 1)
        if at < self.sample_size:
            # Half of a surrogate pair is a fault of its own, and no tokenizer takes it.
            text = whole_text("\n".join(turn["value"] for turn in record["conversations"]))
            if at == len(self.sample):
                self.sample.append(text)
            else:
                self.sample[at] = text

    def _found(
        self, among: dict[str, dict[str, Any]], kind: str, item: Item, turn: int, text: str, at: int
    ) -> None:
        seen = among.setdefault(kind, {"count": 0, "examples": []})
        seen["count"] += 1
        if len(seen["examples"]) < EXAMPLES:
            begin = max(0, at - 30)
            shown = ("…" if begin else "") + text[begin : at + 50] + ("…" if at + 50 < len(text) else "")
            seen["examples"].append(
                {"index": item.number, "id": _shown_id(item.value.get("id")), "turn": turn, "text": shown}
            )

    def records_with(self, names: Sequence[str]) -> int:
        """How many records have at least one of these pictures."""
        lost = set(names)
        alone = sum(self.images[name] for name in lost)
        return alone + sum(count for some, count in self.several.items() if not lost.isdisjoint(some))

    def finish(self) -> Report:
        report = self.report
        for among, codes, counted in (
            (report.sources, self.source_codes, self.by_source),
            (report.types, self.type_codes, self.by_type),
        ):
            for name, code in codes.items():
                among[name] = {column: counted[code, column] for column in COLUMNS}
        for name, row in report.sources.items():
            report.sources[name] = {"records": self.source_records[name]} | row
        report.sources = _largest_first(report.sources, "records")
        report.types = _largest_first(report.types, "answers")
        report.counts = {"records": self.records, "broken": self.broken, "pictures": len(self.images)} | {
            column: sum(row[column] for row in report.types.values()) for column in COLUMNS
        }
        return report


def _shown_id(name: Any) -> Any:
    """An id of sane length as it is, any other cut short."""
    return name if isinstance(name, (int, float)) or len(shorten(name)) < 80 else shorten(name)


def _largest_first(rows: dict[str, dict[str, int]], by: str) -> dict[str, dict[str, int]]:
    return dict(sorted(rows.items(), key=lambda named: (-named[1][by], named[0])))


def _code(codes: dict[str, int], name: str) -> int:
    return codes.setdefault(name, len(codes))


def _count(counter: Counter[tuple[int, str]], codes: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    for column, numbers in columns.items():
        for code, total in enumerate(np.bincount(codes, weights=numbers)):
            counter[code, column] += int(total)


def _mask(column: Any) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _rows(column: Any) -> list[int]:
    return np.flatnonzero(_mask(column)).tolist()


def _strings(values: list[str]) -> Any:
    pa = arrow()

    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError:  # half a surrogate, written as \ud83d in the JSON
        return pa.array([whole_text(value) for value in values], pa.large_string())


def _pictures(root: Path, counting: _Counting, decode: bool, progress: Progress | None) -> dict[str, Any]:
    """Which pictures are not there, which paths leave the root, and which files cannot be decoded."""
    images, first = counting.images, counting.first
    missing, refused = look_for_images(root, images)
    lost = {*missing, *refused}
    there = [name for name in images if name not in lost]
    damaged = _damaged(root, there, progress) if decode else {}
    reasons = refused | damaged
    found: dict[str, Any] = {"root": str(root), "different": len(images), "decoded": decode}
    for kind, names in zip(UNUSABLE, (missing, list(refused), list(damaged)), strict=True):
        examples = [{"index": first[name], "image": name} for name in names[:EXAMPLES]]
        for example in examples:
            if (name := example["image"]) in reasons:
                example["reason"] = reasons[name]
        found |= {
            kind: len(names),
            f"{kind}_records": counting.records_with(names),
            f"{kind}_examples": examples,
        }
    return found


def _damaged(root: Path, names: Sequence[str], progress: Progress | None) -> dict[str, str]:
    """The pictures that cannot be decoded, and why; threads do it, for decoders let go of the interpreter."""
    found: dict[str, str] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), 256):
            some = names[start : start + 256]
            for name, reason in zip(some, pool.map(lambda name: _why_damaged(root, name), some), strict=True):
                if reason is not None:
                    found[name] = reason
            if progress is not None:
                progress(start + len(some), len(names))
    return found


def _why_damaged(root: Path, name: str) -> str | None:
    try:
        open_image(resolve_image(root, name))
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _tokens(tokenizer: Any, texts: list[str], seed: int) -> dict[str, Any]:
    """Tokens of the turns of a record, without template and picture."""
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
