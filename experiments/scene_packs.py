"""Scenes drawn and tokenised once, for several trainings at a time: shards of plain arrays on disk.

    kinds = {"tags": RowSettings(folder_of_a_processor, {"tagged": True, "hint_share": 0.2})}
    write_shard(folder, 0, kinds, count=2048)             # any process, in any order
    shard = read_shard(shard_path(folder, 0), ["tags"])     # waits for nothing: it is whole or not there

A shard holds the pictures of `count` scenes and, for each name, the rows that one kind of training sees about
them (`SceneDataset.conversations`). Two families that see the same texts share the pictures and the draws;
only ids differ. A shard is written beside its place and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from torch import Tensor

from experiments.array_files import save_arrays
from experiments.scene_dataset import SceneDataset, ScenePictures
from reverse.data.scenes import make_scene, render_scene
from reverse.training.data.encoding import Encoder
from reverse.training.data.labels import IGNORE

__all__ = ["RowSettings", "Rows", "Shard", "read_shard", "shard_path", "write_shard"]


@dataclass(frozen=True)
class RowSettings:
    """What one kind of training sees: a processor's folder, and settings of `SceneDataset`."""

    processor: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """The rows of a shard for one kind of training; ids and labels are padded with zeros and `IGNORE`."""

    ids: npt.NDArray[np.int16]  # (rows, length)
    labels: npt.NDArray[np.int16]  # (rows, length)
    lengths: npt.NDArray[np.int32]  # (rows,)
    negative: npt.NDArray[np.uint8]  # (rows,): whether a phrase of it closes with </UN>
    pictured: npt.NDArray[np.uint8]  # (rows,): whether it is about the picture
    begins: npt.NDArray[np.int32]  # (pictures + 1,): the rows about picture k are begins[k]:begins[k + 1]
    first: int  # where a picture's ids begin in every row about one
    count: int  # how many there are


@dataclass(frozen=True)
class Shard:
    pictures: Tensor  # uint8 (pictures, side, side, 3), mapped
    rows: dict[str, Rows]


def shard_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"shard-{number:05d}.safetensors"


def write_shard(
    folder: str | Path,
    number: int,
    kinds: Mapping[str, RowSettings],
    *,
    count: int,
    start: int = 0,
    seed: int = 0,
    side: int = 112,
) -> Path:
    """Scenes `start + number * count` and the `count - 1` after it; a shard that is there is left alone.

    Raises:
        ValueError: rows of one kind hold their picture at different places, or a vocabulary of more than
            32,767 ids.
    """
    path = shard_path(folder, number)
    if path.exists():
        return path
    scenes = [make_scene("train", start + number * count + k, seed, side) for k in range(count)]
    arrays: dict[str, npt.NDArray[Any]] = {"pictures": np.stack([render_scene(scene) for scene in scenes])}
    # Kinds with equal settings differ in nothing but ids.
    for settings in dict.fromkeys(_key(kind) for kind in kinds.values()):
        named = {name: kind for name, kind in kinds.items() if _key(kind) == settings}
        datasets = {name: _dataset(kind.processor, settings, seed, side) for name, kind in named.items()}
        talks = [next(iter(datasets.values())).conversations(scene) for scene in scenes]
        for name, dataset in datasets.items():
            tokens = _tokens(named[name].processor, side)
            made = [
                [dataset.encoder.row(turns, tokens if talk.about_picture else None) for turns in talk.rows]
                for talk in talks
            ]
            arrays |= _arrays(name, made, dataset.encoder, tokens)
    save_arrays(arrays, path)
    return path


def read_shard(path: str | Path, kinds: Iterable[str]) -> Shard:
    """The pictures of a shard and its rows of the kinds named."""
    names = ("ids", "labels", "lengths", "negative", "pictured", "begins")
    rows = {}
    with safe_open(path, framework="pt") as file:
        pictures = file.get_tensor("pictures")
        for kind in kinds:
            arrays: dict[str, Any] = {name: file.get_tensor(f"{kind}.{name}").numpy() for name in names}
            first, count = file.get_tensor(f"{kind}.place").tolist()
            rows[kind] = Rows(**arrays, first=first, count=count)
    return Shard(pictures, rows)


def _arrays(name: str, made: list[list[Any]], encoder: Encoder, tokens: int) -> dict[str, npt.NDArray[Any]]:
    rows = [row for each in made for row in each]
    lengths = np.array([len(row.ids) for row in rows], np.int32)
    ids = np.zeros((len(rows), lengths.max()), np.int16)
    labels = np.full_like(ids, IGNORE)
    if max(int(row.ids.max()) for row in rows) > np.iinfo(np.int16).max:
        raise ValueError(f"{name}: packs hold ids up to 32767, this vocabulary is larger")
    for k, row in enumerate(rows):
        ids[k, : len(row.ids)] = row.ids
        labels[k, : len(row.ids)] = row.labels
    shown = ids == encoder.image_id
    pictured = shown.any(axis=1)
    places = set(shown[pictured].argmax(axis=1).tolist()) or {0}
    if len(places) > 1:
        raise ValueError(f"{name}: pictures begin at {sorted(places)}: rows must have one system prompt")
    un = encoder._tags.un
    found = {
        "ids": ids,
        "labels": labels,
        "lengths": lengths,
        "negative": (ids == un).any(axis=1).astype(np.uint8),
        "pictured": pictured.astype(np.uint8),
        "begins": np.cumsum([0, *map(len, made)]).astype(np.int32),
        "place": np.array([places.pop(), tokens], np.int32),
    }
    return {f"{name}.{part}": array for part, array in found.items()}


def _key(kind: RowSettings) -> str:
    return json.dumps(dict(kind.settings), sort_keys=True)


@lru_cache(maxsize=64)
def _dataset(processor: str, settings: str, seed: int, side: int) -> SceneDataset:
    return SceneDataset(_encoder(processor), seed=seed, side=side, **json.loads(settings))


@lru_cache(maxsize=16)
def _encoder(processor: str) -> Encoder:
    from reverse.models.families import family_named
    from reverse.models.processors.picture_processors import load_processor

    config = json.loads((Path(processor) / "config.json").read_text(encoding="utf-8"))
    return Encoder(load_processor(processor, family_named(config["model_type"], processor)))


@lru_cache(maxsize=16)
def _tokens(processor: str, side: int) -> int:
    """Ids that stand for one picture."""
    return ScenePictures(_encoder(processor).processor)(np.zeros((side, side, 3), np.uint8))[1]
