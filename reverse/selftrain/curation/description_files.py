"""The files of `reverse curate image-description`."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import read_drafts
from reverse.files.atomic_write import sha256
from reverse.files.resumable_parts import PartFile
from reverse.progress import ProgressCallback
from reverse.selftrain.curation.image_descriptions import DescriptionPattern, find_descriptions

__all__ = ["write_descriptions"]


def write_descriptions(
    source: Path, out: Path, named: str, limit: int | None, progress: ProgressCallback
) -> dict[str, Any]:
    """Write a line `{"image", "description"}` for each description that is found; return the counts.

    The first description of a picture counts where several records show it.
    """
    pattern = DescriptionPattern(named)
    plan = {"command": "curate image-description", "pattern": named, "limit": limit, "input": source.name}
    with PartFile(out, plan | {"input_sha256": sha256(source)}) as part:
        if part.manifest is None:
            counts: Counter[str] = Counter()
            for found in find_descriptions(islice(read_drafts(source), part.done, limit), pattern, counts):
                lines = [{"image": image, "description": found.description} for image in found.images]
                failures = [{"id": found.record, "reason": found.reason}] if found.reason else []
                part.write(lines, counts, failures)
                counts.clear()
                progress(part.done)
        counts_made: dict[str, Any] = part.finish()["counts"]
    return counts_made
