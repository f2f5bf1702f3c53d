"""Check all records before the first step, so that none stops a run hours later.

    checked = check_records(dataset, "out/run", identity={"sha256": …}, skip_bad=False)
    checked.bad, checked.cut            # indices of bad records; number of turns of the others that do not
    fit

`record_check` says which records are bad. Each process of a run checks a share of them and learns what the
others found. The outcome is kept in `OUTPUT.checked.json` until the run has ended, for the same data,
settings and processor: a resumed run does not check again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reverse.errors import DataError
from reverse.files.atomic_write import write_json
from reverse.files.text_reading import read_json
from reverse.training.data.record_check import inspect_records
from reverse.training.data.training_sets import RecordDataset
from reverse.training.optim.parallel import exchange, is_first, processes, rank

__all__ = ["Checked", "Cut", "check_records", "checked_file"]

FORMAT = 6  # of the file
SHOWN = 5  # bad records in a message
FIRST = 10  # numbers in a line
LARGEST_SHARE = 0.5  # of records that may be left out: more are not bad records but a wrong setting

Say = Callable[[str], None]
ShowProgress = Callable[[float, float], None]


class Cut(NamedTuple):
    """Number of trainable records that lose turns that do not fit, and number of these turns."""

    records: int
    turns: int
    first: list[int]  # some of the records' numbers


class Checked(NamedTuple):
    """The result of the check: indices of bad records, and cuts of the others."""

    bad: list[int]
    cut: Cut


def check_records(
    dataset: RecordDataset,
    output: str | Path,
    *,
    identity: Mapping[str, Any],
    skip_bad: bool = False,
    resume: bool = True,
    say: Say = lambda line: None,
    progress: ShowProgress = lambda done, total: None,
) -> Checked:
    """Check all records of `dataset`, and leave the bad ones out of it from now on.

    Every process of a run calls it.

    Args:
        dataset: opened with `keep_broken`.
        output: of the run; what was found is kept beside it.
        identity: what the data are, JSON.
        skip_bad: leave bad records out; False: they are an error. Damaged pictures are found when they are
            drawn, and then the next record is trained, or it is an error.
        resume: use what an earlier start found for the same data and settings.
        say: called with a line about the progress.
        progress: called with how many records of this process' share are checked, and how many there are.

    Raises:
        ValueError: there are bad records and `skip_bad` is not set, or more than half are bad.
    """
    dataset.replace_damaged = skip_bad  # pictures are decoded when they are drawn, and not before
    path, count = checked_file(output), len(dataset)
    key = json.loads(json.dumps({"format": FORMAT, **identity, **_settings(dataset)}))
    kept = exchange(_read(path, key) if resume and is_first() else None)[0]
    found = kept or {"key": key, **_inspect_together(dataset, say, progress)}
    numbers, shown, cut = found["bad"], found["shown"], Cut(*found["cut"])
    if numbers and not skip_bad:
        remedy = "mend them (`reverse data check` names what no model is trained on), or leave them out "
        raise DataError(_message(dataset, numbers, shown, count, remedy + "with data.skip_bad=true"))
    if len(numbers) > LARGEST_SHARE * count:
        remedy = "data.skip_bad leaves out half of them at most: is data.images the right folder?"
        raise DataError(_message(dataset, numbers, shown, count, remedy))
    if kept is None and is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    if numbers:
        say(f"left out {len(numbers):,} bad records, the first of them {numbers[:FIRST]}: {shown[0][1]}")
        dataset.leave_out(numbers)
    if cut.records:
        say(
            f"{cut.turns:,} turns of {cut.records:,} records do not fit in data.max_length="
            f"{dataset.encoder.max_length} and are left out, from the end; the first records: {cut.first}"
        )
    return Checked(numbers, cut)


def _inspect_together(dataset: RecordDataset, say: Say, progress: ShowProgress) -> dict[str, Any]:
    """Check each process's share and join the results: indices of `bad` records, some of them `shown`, and
    the `cut`.
    """
    count = len(dataset)
    say(f"checking {count:,} records")
    most, longest = dataset.pictures.most(), dataset.encoder.max_length
    if longest is not None and most >= longest and dataset.pictures.keeps_size:
        say(
            f"a picture may take {most:,} ids and a row holds {longest:,} (data.max_length): the sizes "
            "of all pictures are read, and what does not fit is bad; data.max_pixels makes them smaller"
        )
    began = time.monotonic()
    first, end = (count * k // processes() for k in (rank(), rank() + 1))
    bad, cut = inspect_records(dataset, first, end, progress)
    samples = [
        [*one, dataset.records.raw(one.number)[:300].decode("utf-8", "replace")] for one in bad[:SHOWN]
    ]
    shares = exchange(
        {
            "bad": [one.number for one in bad],
            "shown": samples,
            "cut": [len(cut), sum(cut.values()), sorted(cut)[:FIRST]],
        }
    )
    numbers = sorted(number for share in shares for number in share["bad"])
    say(f"checked {count:,} records in {time.monotonic() - began:.0f} s: {len(numbers):,} are bad")
    records, turns, firsts = zip(*(share["cut"] for share in shares), strict=True)
    return {
        "bad": numbers,
        "shown": [sample for share in shares for sample in share["shown"]][:SHOWN],
        "cut": [sum(records), sum(turns), [number for some in firsts for number in some][:FIRST]],
    }


def checked_file(output: str | Path) -> Path:
    """Return the path where the result is kept during a run."""
    output = Path(output)
    return output.with_name(output.name + ".checked.json")


def _settings(dataset: RecordDataset) -> dict[str, Any]:
    """Return the settings, and a hash of the processor, that decide which records are bad."""
    processor = dataset.encoder.processor
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    texts = [str(processor.chat_template), str(processor.image_processor)]
    texts += [] if backend is None else [backend.to_str()]
    return {
        "images": str(dataset.image_root.resolve()),
        "items": len(dataset),
        "max_length": dataset.encoder.max_length,
        "hint_share": dataset.hint_share,
        "seed": dataset.seed,
        "processor": hashlib.sha256("\n".join(texts).encode("utf-8", "replace")).hexdigest(),
    }


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the result of an earlier start for the same data and settings, or None."""
    try:
        found = read_json(path)
        return found if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _message(dataset: RecordDataset, numbers: list[int], shown: list[Any], count: int, remedy: str) -> str:
    """Write the error about bad records. `shown`: index, reason and beginning of the first ones."""
    lines = [
        f"data.records: {len(numbers):,} of {count:,} records of {dataset.path} cannot be trained: {remedy}"
    ]
    lines += [f"  record {number}: {reason}; the record: {record}" for number, reason, record in shown]
    more = [str(number) for number in numbers[len(shown) :]]
    if more:
        lines.append(f"  and {len(more):,} more: {', '.join(more[:20])}{', …' if len(more) > 20 else ''}")
    return "\n".join(lines)
