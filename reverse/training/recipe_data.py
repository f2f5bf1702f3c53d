"""Open and check the records that a recipe names: one set, or a mixture of several.

parts = list_parts(recipe)                       # of one set: one part
sets = open_parts(recipe, encoder)
checked = check_parts(recipe, sets, found, manifest, resume=True)
dataset = join_parts(recipe, sets)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reverse.data.records.published_set import records_path
from reverse.errors import MissingFileError
from reverse.files.atomic_write import sha256
from reverse.training.data.encoding import Encoder
from reverse.training.data.first_pass import Checked, Cut, check_records, checked_file
from reverse.training.data.mixture import Mixture
from reverse.training.data.training_sets import RecordDataset
from reverse.training.recipes.recipe import Recipe, RecordPart

__all__ = [
    "check_part_files",
    "check_parts",
    "describe_checked",
    "describe_data",
    "describe_parts",
    "forget_checked",
    "join_parts",
    "list_parts",
    "open_parts",
]


def list_parts(recipe: Recipe) -> list[RecordPart]:
    """List the parts of the recipe's records, with folders of pictures and limits filled in."""
    data = recipe.data
    parts = [RecordPart(records=data.records)] if isinstance(data.records, str) else data.records
    return [
        part.model_copy(
            update={
                "images": data.images if part.images is None else part.images,
                "limit": data.limit if part.limit is None else part.limit,
            }
        )
        for part in parts
    ]


def is_mixture(recipe: Recipe) -> bool:
    """Whether the recipe's records stand in a list of parts."""
    return not isinstance(recipe.data.records, str)


def _key(recipe: Recipe, k: int, name: str) -> str:
    """Return the name of a part's key in the recipe, for messages."""
    return f"data.records.{k}.{name}" if is_mixture(recipe) else f"data.{name}"


def check_part_files(recipe: Recipe) -> None:
    """Check that the files and folders of all parts exist. Raises MissingFileError naming the key."""
    for k, part in enumerate(list_parts(recipe)):
        try:
            records_path(part.records)
        except FileNotFoundError as error:
            raise MissingFileError(f"{_key(recipe, k, 'records')}: {error}") from None
        if not Path(str(part.images)).is_dir():
            raise MissingFileError(
                f"{_key(recipe, k, 'images')}: no such folder: {part.images}: name the folder of the pictures"
            )


def describe_data(recipe: Recipe) -> dict[str, Any]:
    """Return what identifies the data of a run: with other data it is another run."""
    hint_share = recipe.data.hint_share
    if not is_mixture(recipe):
        return {**_describe_file(list_parts(recipe)[0]), "hint_share": hint_share}
    parts = [{**_describe_file(part), **_describe_plan(part)} for part in list_parts(recipe)]
    whole = hashlib.sha256("\n".join(part["sha256"] for part in parts).encode()).hexdigest()
    return {"parts": parts, "sha256": whole, "hint_share": hint_share}


def _describe_file(part: RecordPart) -> dict[str, Any]:
    path = records_path(part.records)
    path = path / "manifest.json" if path.is_dir() else path  # it names the hash of what was imported
    return {"records": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}


def _describe_plan(part: RecordPart) -> dict[str, Any]:
    return {name: getattr(part, name) for name in ("images", "share", "repeat", "weight", "limit")}


def open_parts(recipe: Recipe, encoder: Encoder) -> list[RecordDataset]:
    """Open the records of all parts."""
    return [
        RecordDataset(
            part.records,
            str(part.images),
            encoder,
            hint_share=recipe.data.hint_share,
            seed=recipe.seed,
            limit=part.limit,
            keep_broken=True,
            weight=part.weight,
        )
        for part in list_parts(recipe)
    ]


def join_parts(recipe: Recipe, sets: Sequence[RecordDataset]) -> RecordDataset | Mixture:
    """Return the dataset to train: the only part itself, or the mixture of the sets as they are now."""
    if not is_mixture(recipe):
        return sets[0]
    return Mixture(sets, [part.plan for part in list_parts(recipe)], seed=recipe.seed)


def check_parts(
    recipe: Recipe,
    sets: Sequence[RecordDataset],
    found: str | Path,
    data: dict[str, Any],
    *,
    resume: bool,
    say: Callable[[str], None],
    progress: Callable[[float, float], None],
) -> list[Checked]:
    """Check the records of all parts, and leave the bad ones out (`check_records`).

    Args:
        found: output of the run; results are kept beside it.
        data: of `describe_data`.
        resume, say, progress: see `check_records`.
    """
    return [
        check_records(
            one,
            _place(recipe, found, k),
            identity=data if not is_mixture(recipe) else data["parts"][k],
            skip_bad=recipe.data.skip_bad,
            resume=resume,
            say=say,
            progress=progress,
        )
        for k, one in enumerate(sets)
    ]


def _place(recipe: Recipe, found: str | Path, k: int) -> Path:
    return Path(f"{found}.{k}") if is_mixture(recipe) else Path(found)


def describe_checked(recipe: Recipe, checked: Sequence[Checked]) -> tuple[Checked, dict[str, Any]]:
    """Return the results of all parts together, and their form in the manifest.

    Numbers of bad records are listed for each part of a mixture.
    """
    if not is_mixture(recipe):
        whole, numbers = checked[0], list[Any](checked[0].bad)
    else:
        cuts = [one.cut for one in checked]
        cut = Cut(sum(each.records for each in cuts), sum(each.turns for each in cuts), [])
        whole = Checked([number for one in checked for number in one.bad], cut)
        numbers = [one.bad for one in checked]
    return whole, {
        "left_out": {"count": len(whole.bad), "records": numbers},
        "cut": {"records": whole.cut.records, "turns": whole.cut.turns},
    }


def forget_checked(recipe: Recipe, output: str | Path) -> None:
    """Remove the stored results of the check, at the end of a run."""
    for k in range(len(list_parts(recipe))):
        checked_file(_place(recipe, output, k)).unlink(missing_ok=True)


def describe_parts(recipe: Recipe, dataset: RecordDataset | Mixture) -> list[dict[str, Any]]:
    """Describe each part of a mixture: file, records, items of a pass, weight. Empty for a single set."""
    if not isinstance(dataset, Mixture):
        return []
    return [
        {"records": part.records, "count": size, "items": items, "weight": part.weight}
        for part, size, items in zip(list_parts(recipe), dataset.sizes, dataset.counts, strict=True)
    ]
