"""What is trained on: records on disk in the published shape, or scenes drawn as they are asked for.

Both give an `Item`: one picture and the rows about it, determined by the index and the seed alone, whatever
worker asks. `collator.Collator` makes a batch of items.

    RecordDataset("reverse_ft.json", "playground/data", encoder, seed=0)
    SceneDataset(encoder, pictures=500_000, tagged=True)
"""

from __future__ import annotations

import json
import mmap
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from reverse.data.records import ANSWER_TYPE, validate
from reverse.data.scenes import Scene, caption, make_scene, negative, render, scene_records
from reverse.data.scenes.captions import PREJUDICE
from reverse.tokens.spans import UN
from reverse.training.encoding import Encoder, Item, Row, Turn, turns_of
from reverse.training.hints import choose_hints
from reverse.training.pictures import PictureEncoder

__all__ = ["RecordDataset", "SceneDataset"]

HINT_SHARE = 0.2  # of the positive general answers name wrong phrases, as published
# Of the hinted negatives say a phrase that was hinted. A larger share would make every other phrase look
# safe after a hint: at one half, hints lowered p(</UN>) of new wrong phrases so much that they hurt.
HINTED_AGAIN = 0.15


class RecordDataset(Dataset[Item]):
    """Records of a JSON list or of JSONL; each record, with all its turns, is one row.

    The file is mapped, not loaded: of each record two offsets are kept (1.3M records: 21 MB). A positive
    general answer carries its record's `hint` with probability `hint_share`; the draw depends on seed and
    index.

    Args:
        path: the file. A JSON list is read through once, to find where its records stand.
        image_root: what the records' images are relative to.
        encoder: makes the rows.
        hint_share: probability, 0 for none.
        seed: of the draws.
        limit: the first so many records only; None: all.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path,
        encoder: Encoder,
        *,
        hint_share: float = HINT_SHARE,
        seed: int = 0,
        limit: int | None = None,
    ):
        self.path = Path(path)
        self.image_root = Path(image_root)
        self.encoder = encoder
        self.pictures = PictureEncoder(encoder.processor)
        self.hint_share = hint_share
        self.seed = seed
        self.spans = _find_records(self.path)[:limit]  # (records, 2) int64, bytes
        self._file: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Item:
        record = self.record(index)
        if record.get("image") is None:
            return Item((self._row(index, record, None),), None)
        from reverse.data.images import open_image, resolve_image

        inputs, tokens = self.pictures(open_image(resolve_image(self.image_root, record["image"])))
        return Item((self._row(index, record, tokens),), inputs)

    def row(self, index: int, image_tokens: int) -> Row:
        """Ids and labels of a record without opening its picture, which would take `image_tokens` ids."""
        record = self.record(index)
        return self._row(index, record, None if record.get("image") is None else image_tokens)

    def _row(self, index: int, record: Mapping[str, Any], image_tokens: int | None) -> Row:
        turns = self._with_hints(record, random.Random(f"{self.seed} record {index}"))
        try:
            return self.encoder.row(turns, image_tokens)
        except ValueError as error:
            said = json.dumps(record, ensure_ascii=False)
            raise ValueError(f"{self.path}, record {index}: {error}; the record: {said[:600]}") from error

    def lengths(self) -> npt.NDArray[np.int64]:
        """About how long each record is, (records,) int64: its bytes; negative where it has no picture."""
        file = self._open()
        pictured = [b'"image"' in file[start:end] for start, end in self.spans]
        sizes = self.spans[:, 1] - self.spans[:, 0]
        return np.where(pictured, sizes, -sizes)

    def record(self, index: int) -> dict[str, Any]:
        """Record number `index` as it stands in the file."""
        start, end = self.spans[index]
        record = json.loads(self._open()[start:end])
        validate(record, f"{self.path}, record {index}")
        return record

    def _open(self) -> mmap.mmap:
        if self._file is None:
            with self.path.open("rb") as file:
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._file

    def _with_hints(self, record: Mapping[str, Any], rng: random.Random) -> list[Turn]:
        turns = []
        for turn, said in zip(turns_of(record), record["conversations"][1::2], strict=True):
            if _may_be_hinted(said) and rng.random() < self.hint_share:
                turn = replace(turn, hints=choose_hints(rng, turn.answer, own=[said["hint"]]))
            turns.append(turn)
        return turns

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}  # each worker maps the file itself


class SceneDataset(Dataset[Item]):
    """Scenes of one split, rendered as they are asked for; an item is a picture and some answers about it.

    The plain twin (`tagged=False, negatives=False`) sees, at each index, the picture and the positive answers
    of the tagged set, without tags. In a hinted item the prompt names what prejudice could have said and the
    answer does not say; the negative that goes with it names the same, mostly without the phrase it ends in.
    (Were hints found with positive answers only, a hint would tell the model that all is well, and nothing
    said after one would ever be suspect.)

    Args:
        encoder: makes the rows.
        pictures: how many there are; they cost nothing until asked for.
        split: "train" for training.
        start: index of the first scene, so that stages can see different pictures.
        seed: of the scenes and of every draw.
        tagged, negatives: with the three tokens; each answer followed by its negative.
        prejudice: share of captions in which the annotator names an absent object.
        answers: positive answers a picture.
        caption_share: how often an answer is a caption and not one to a question.
        hint_share: of the items with a general answer; also where there are no tags, see above.
        side: pixels.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        pictures: int = 10_000_000,
        split: str = "train",
        start: int = 0,
        seed: int = 0,
        tagged: bool = True,
        negatives: bool = True,
        prejudice: float = PREJUDICE,
        answers: int = 1,
        caption_share: float = 0.7,
        hint_share: float = HINT_SHARE,
        side: int = 112,
    ):
        self.encoder = encoder
        self.pictures = PictureEncoder(encoder.processor)
        self.count = pictures
        self.split, self.start, self.seed, self.side = split, start, seed, side
        self.tagged, self.negatives = tagged, negatives
        self.prejudice, self.hint_share = prejudice, hint_share
        self.answers, self.caption_share = answers, caption_share

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        scene = make_scene(self.split, self.start + index, self.seed, self.side)
        inputs, tokens = self.pictures(render(scene))
        rows = tuple(self.encoder.row([turn], tokens) for turn in self.turns(scene))
        return Item(rows, inputs)

    def turns(self, scene: Scene) -> list[Turn]:
        """The answers of one picture: positives, each followed by its negative where there are negatives."""
        rng = random.Random(f"{self.seed} scene {scene.split} {scene.index}")
        hinted = rng.random() < self.hint_share
        records = scene_records(
            scene,
            prejudice=self.prejudice,
            tagged=self.tagged,
            negatives=self.negatives and self.tagged,
        )
        stride = 2 if self.negatives and self.tagged else 1
        turns = []
        for place in self._choose(rng, len(records) // stride):
            pair = records[place * stride : (place + 1) * stride]
            turns += self._pair(scene, pair, hinted and self.tagged)
        return turns

    def _choose(self, rng: random.Random, positives: int) -> list[int]:
        """Which positives are shown; number 0 is the caption."""
        chosen: list[int] = []
        for _ in range(min(self.answers, positives)):
            if 0 not in chosen and (rng.random() < self.caption_share or len(chosen) == positives - 1):
                chosen.append(0)
            else:
                chosen.append(rng.choice([k for k in range(1, positives) if k not in chosen]))
        return chosen

    def _pair(self, scene: Scene, pair: Sequence[Mapping[str, Any]], hinted: bool) -> list[Turn]:
        turns = [turns_of(record)[0] for record in pair]
        said = pair[0]["conversations"][1]
        if not (hinted and _may_be_hinted(said)):
            return turns
        # A generator of its own: the twin draws nothing here, and must choose the same answers.
        rng = random.Random(f"{self.seed} hints {scene.split} {scene.index}")
        own = said["hint"]
        hints = choose_hints(rng, turns[0].answer, own=[own], pool=_false_phrases(scene, rng))
        turns[0] = replace(turns[0], hints=hints)
        if len(turns) > 1:
            kept = hints if rng.random() < HINTED_AGAIN else tuple(hint for hint in hints if hint != own)
            turns[1] = replace(turns[1], hints=kept)
        return turns


def _may_be_hinted(answer: Mapping[str, Any]) -> bool:
    """A general answer with a hint and without a wrong phrase."""
    return answer.get("A_type") == ANSWER_TYPE and bool(answer.get("hint")) and UN not in answer["value"]


def _false_phrases(scene: Scene, rng: random.Random, draws: int = 6) -> list[str]:
    """What a model says wrongly of this scene: what prejudice adds, and the false phrases of negatives."""
    draw = np.random.default_rng(rng.getrandbits(64))
    described = caption(scene, draw, prejudice=1.0)
    expected = [phrase.text for phrase in described.phrases if not phrase.true]
    return expected + [negative(scene, described, draw).hint for _ in range(draws)]


def _find_records(path: Path) -> npt.NDArray[np.int64]:
    """Where each record of a JSON list or of JSONL begins and ends, in bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing in it, or not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}: give a JSON list or JSONL of instruct records")
    with path.open("rb") as file:
        head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
        file.seek(0)
        if head[:1] == b"[":
            # As Latin-1 a character is a byte, and JSON's own characters are the same: offsets are bytes.
            spans = _list_spans(file.read().decode("latin-1"), path)
        else:
            ends = np.cumsum([0, *(len(line) for line in file)])
            file.seek(0)
            filled = np.array([bool(line.strip()) for line in file], dtype=bool)
            spans = np.stack([ends[:-1], ends[1:]], axis=1)[filled]
    if len(spans) == 0:
        raise ValueError(f"{path} holds no records")
    return spans.astype(np.int64)


def _list_spans(text: str, path: Path) -> npt.NDArray[np.int64]:
    decode = json.JSONDecoder().raw_decode
    spans: list[tuple[int, int]] = []
    at = text.index("[") + 1
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if text[at : at + 1] == "]":
            return np.array(spans, dtype=np.int64).reshape(-1, 2)
        try:
            _, end = decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): was it cut off in copying?") from error
        spans.append((at, end))
        at = end
