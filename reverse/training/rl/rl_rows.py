"""Read rows of preferences and questions (`reverse data view --as dpo | grpo`) as data sets for TRL.

    rows = read_rows("pairs.jsonl", "pictures", kind="dpo", image_token="<image>")
    dataset = make_dataset(rows)        # opens the pictures of a row when the row is read

Every row is checked once, before the model is loaded. Afterwards memory holds the place of each row in the
file, not the rows.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reverse.data.pictures.opening import open_image, resolve_image
from reverse.errors import DataError, MissingFileError, RequestError
from reverse.files.text_reading import parse_json
from reverse.training.rl.attempt_text import is_readable
from reverse.training.views.grpo_views import read_gold

__all__ = ["RowFile", "make_dataset", "read_rows"]

LONGEST_LINE = 1 << 24  # bytes
MOST_LISTED = 10  # bad rows that are kept by line and reason


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Part(_Row):
    type: Literal["image", "text"]
    text: str = ""


class _Turn(_Row):
    role: Literal["system", "user", "assistant"]
    content: list[_Part] = Field(min_length=1)


class _Question(_Row):
    prompt: list[_Turn] = Field(min_length=1)
    images: list[str] = Field(min_length=1)


class _Pair(_Question):
    chosen: list[_Turn] = Field(min_length=1, max_length=1)
    rejected: list[_Turn] = Field(min_length=1, max_length=1)


class _GradedQuestion(_Question):
    answers: list[str] = Field(min_length=1)
    kind: str
    choices: list[str] = []
    tolerance: float = 0.0
    unit: str = ""
    pass_rate: float | None = None


@dataclass
class RowFile:
    """A checked file of rows."""

    path: Path
    images: Path
    places: array[int] = field(default_factory=lambda: array("Q"))  # bytes before each row that is used
    left_out: Counter[str] = field(default_factory=Counter)  # rows that are not used, by reason
    bad: list[str] = field(default_factory=list)  # the first of them that cannot be trained

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a row with its pictures opened, and with the columns that rewards need."""
        with self.path.open("rb") as stream:
            stream.seek(self.places[number])
            row: dict[str, Any] = json.loads(stream.readline())
        row["images"] = [open_image(resolve_image(self.images, name)) for name in row["images"]]
        return row


def read_rows(
    path: str | Path,
    images: str | Path,
    *,
    kind: str,
    image_token: str,
    limit: int | None = None,
    skip_bad: bool = False,
    pass_rates: tuple[float, float] = (0.0, 1.0),
) -> RowFile:
    """Check a file of rows and note where they stand.

    Args:
        path: JSON lines.
        images: folder of the pictures.
        kind: "dpo" or "grpo".
        image_token: token that no text may contain, because the model would expect a picture there.
        limit: number of rows, from the first.
        skip_bad: leave out rows that cannot be trained; else they are an error.
        pass_rates: "grpo" rows whose `pass_rate` lies outside are left out.

    Raises:
        MissingFileError, DataError: no such file, a row that cannot be trained, or no row at all.
    """
    rows = RowFile(Path(path), Path(images))
    if not rows.path.is_file():
        raise MissingFileError(
            f"data.records: no such file: {path}: make one with `reverse data view --as {kind}`"
        )
    with rows.path.open("rb") as stream:
        place = number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            start, place = place, place + len(line)
            if not line.strip():
                continue
            if limit is not None and len(rows) + rows.left_out.total() >= limit:
                break
            _check_line(rows, line, number, start, kind, image_token, skip_bad, pass_rates)
    if not len(rows):
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in rows.left_out.most_common())
        raise DataError(f"{path} holds no row that can be trained: {reasons or 'it is empty'}")
    return rows


def make_dataset(rows: RowFile) -> Any:
    """Make the `datasets.Dataset` of rows that TRL requires; a row is read only when it is used."""
    from datasets import Dataset

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        found = [rows[number] for number in batch["number"]]
        return {name: [row.get(name) for row in found] for name in found[0]}

    return Dataset.from_dict({"number": range(len(rows))}).with_transform(read)


def _check_line(
    rows: RowFile,
    line: bytes,
    number: int,
    start: int,
    kind: str,
    image_token: str,
    skip_bad: bool,
    pass_rates: tuple[float, float],
) -> None:
    """Note the place of a row, or the reason why it is left out."""
    where = f"{rows.path}, line {number}"
    try:
        if len(line) > LONGEST_LINE:
            raise DataError(f"longer than {LONGEST_LINE:,} bytes")
        row = (_Pair if kind == "dpo" else _GradedQuestion).model_validate(
            parse_json(line.decode("utf-8"), where)
        )
        _check_row(row, rows.images, image_token)
    except (ValidationError, ValueError, OSError) as error:
        reason = _describe(error)
        if not skip_bad:
            raise DataError(f"{where}: {reason}: mend it, or set data.skip_bad=true") from None
        rows.left_out["cannot be trained"] += 1
        if len(rows.bad) < MOST_LISTED:
            rows.bad.append(f"line {number}: {reason:.200}")
        return
    rate = getattr(row, "pass_rate", None)
    if rate is not None and not pass_rates[0] <= rate <= pass_rates[1]:
        rows.left_out["pass rate outside of the band"] += 1
        return
    rows.places.append(start)


def _check_row(row: _Question, images: Path, image_token: str) -> None:
    """Raise DataError or RequestError for a row that TRL would fail on, or would train wrongly."""
    turns = [*row.prompt]
    if row.prompt[-1].role != "user":
        raise DataError(f"the prompt's last turn has the role {row.prompt[-1].role!r}: it must be user")
    if isinstance(row, _Pair):
        turns += [*row.chosen, *row.rejected]
        said = [[part.text for part in turn[0].content] for turn in (row.chosen, row.rejected)]
        if said[0] == said[1]:
            raise DataError("chosen and rejected are the same: leave the row out")
    parts = [part for turn in turns for part in turn.content]
    places = sum(part.type == "image" for part in parts)
    if places != len(row.images):
        raise DataError(
            f"it has {places} places for pictures and {len(row.images)} pictures: give one picture per place"
        )
    if any(image_token in part.text for part in parts):
        raise DataError(f"a text holds {image_token}, which stands for a picture: take it out")
    for name in row.images:
        if not resolve_image(images, name).is_file():
            raise MissingFileError(f"no picture {name!r:.200} in {images}")
    if isinstance(row, _GradedQuestion):
        key = read_gold(row.model_dump()).key()
        if not is_readable(key):
            raise RequestError(f"the right answer {key.answers!r:.80} cannot be read as {key.kind}")


def _describe(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
