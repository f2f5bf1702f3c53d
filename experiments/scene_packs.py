"""Scenes drawn and tokenised once, for several trainings at a time: slabs of plain arrays on disk.

    diets = {"tags": Diet(folder_of_a_processor, {"tagged": True, "hint_share": 0.2})}
    write_slab(folder, 0, diets, count=2048)             # any process, in any order
    slab = read_slab(slab_path(folder, 0), ["tags"])     # waits for nothing: it is whole or not there

A slab holds the pictures of `count` scenes and, for each diet, the rows that one kind of training sees about
them (`SceneDataset.conversations`). Two families that see the same texts share the pictures and the draws;
only ids differ. A slab is written beside its place and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from reverse.data.scenes import make_scene, render
from reverse.training.data.encoding import Encoder
from reverse.training.data.fast_pictures import PictureEncoder
from reverse.training.data.labels import IGNORE
from reverse.training.data.training_sets import SceneDataset

__all__ = ["Diet", "Rows", "Slab", "read_slab", "slab_path", "write_slab"]


@dataclass(frozen=True)
class Diet:
    """What one kind of training sees: a processor's folder, and settings of `SceneDataset`."""

    processor: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """The rows of a slab under one diet; ids and labels are padded with zeros and `IGNORE`."""

    ids: npt.NDArray[np.int16]  # (rows, length)
    labels: npt.NDArray[np.int16]  # (rows, length)
    lengths: npt.NDArray[np.int32]  # (rows,)
    negative: npt.NDArray[np.uint8]  # (rows,): whether a phrase of it closes with </UN>
    pictured: npt.NDArray[np.uint8]  # (rows,): whether it is about the picture
    begins: npt.NDArray[np.int32]  # (pictures + 1,): the rows about picture k are begins[k]:begins[k + 1]
    first: int  # where a picture's ids begin in every row about one
    count: int  # how many there are


@dataclass(frozen=True)
class Slab:
    pictures: Tensor  # uint8 (pictures, side, side, 3), mapped
    rows: dict[str, Rows]


def slab_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"slab-{number:05d}.safetensors"


def write_slab(
    folder: str | Path,
    number: int,
    diets: Mapping[str, Diet],
    *,
    count: int,
    start: int = 0,
    seed: int = 0,
    side: int = 112,
) -> Path:
    """Scenes `start + number * count` and the `count - 1` after it; a slab that is there is left alone.

    Raises:
        ValueError: rows of one diet hold their picture at different places, or a vocabulary of more than
            32,767 ids.
    """
    path = slab_path(folder, number)
    if path.exists():
        return path
    scenes = [make_scene("train", start + number * count + k, seed, side) for k in range(count)]
    arrays: dict[str, npt.NDArray[Any]] = {"pictures": np.stack([render(scene) for scene in scenes])}
    # Diets with equal settings differ in nothing but ids.
    for settings in dict.fromkeys(_key(diet) for diet in diets.values()):
        named = {name: diet for name, diet in diets.items() if _key(diet) == settings}
        datasets = {name: _dataset(diet.processor, settings, seed, side) for name, diet in named.items()}
        talks = [next(iter(datasets.values())).conversations(scene) for scene in scenes]
        for name, dataset in datasets.items():
            tokens = _tokens(named[name].processor, side)
            made = [
                [dataset.encoder.row(turns, tokens if talk.about_picture else None) for turns in talk.rows]
                for talk in talks
            ]
            arrays |= _arrays(name, made, dataset.encoder, tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(arrays, partial)
    partial.replace(path)
    return path


def read_slab(path: str | Path, diets: Iterable[str]) -> Slab:
    """The pictures of a slab and its rows under the diets named."""
    names = ("ids", "labels", "lengths", "negative", "pictured", "begins")
    rows = {}
    with safe_open(path, framework="pt") as file:
        pictures = file.get_tensor("pictures")
        for diet in diets:
            arrays: dict[str, Any] = {name: file.get_tensor(f"{diet}.{name}").numpy() for name in names}
            first, count = file.get_tensor(f"{diet}.place").tolist()
            rows[diet] = Rows(**arrays, first=first, count=count)
    return Slab(pictures, rows)


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


def _key(diet: Diet) -> str:
    return json.dumps(dict(diet.settings), sort_keys=True)


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
    return PictureEncoder(_encoder(processor).processor)(np.zeros((side, side, 3), np.uint8))[1]
