"""Scenes of the embedded world as training items, drawn as they are asked for.

    SceneDataset(encoder, pictures=500_000, tagged=True)

An item depends on its index and the seed alone, whatever worker asks for it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reverse.data.scenes import (
    Scene,
    make_scene,
    make_scene_records,
    render_scene,
    write_caption,
    write_negative_caption,
)
from reverse.data.scenes.captions import PREJUDICE
from reverse.data.scenes.text_questions import make_text_question
from reverse.tokens import remove_tags
from reverse.training.data.encoding import Encoder, TrainingItem
from reverse.training.data.picture_encoding import PictureEncoder
from reverse.training.data.record_turns import Turn, turns_of
from reverse.training.data.training_hints import choose_hints
from reverse.training.data.training_sets import HINT_SHARE, may_be_hinted

__all__ = ["SceneDataset", "ScenePictures", "Talk"]

Conversation = tuple[Turn, ...]
Table = npt.NDArray[np.float32]  # (3, 256): what each value of each channel becomes

# Of the hinted negatives say a phrase that was hinted. A larger share would make every other phrase look
# safe after a hint: at one half, hints lowered p(</UN>) of new wrong phrases so much that they hurt.
HINTED_AGAIN = 0.15


@dataclass(frozen=True, slots=True)
class Talk:
    """Conversations that make the rows of one item, and whether they are about its picture."""

    rows: tuple[Conversation, ...]
    about_picture: bool


class SceneDataset(Dataset[TrainingItem]):
    """Scenes of one split, rendered as they are asked for; an item is a picture and some answers about it.

    The plain twin (`tagged=False`) sees, at each index, the picture and the positive answers of the tagged
    set, without tags. In a hinted item the prompt names what prejudice could have said and the answer does
    not say; the negative that goes with it names the same, mostly without the phrase it ends in. (Were hints
    found with positive answers only, a hint would tell the model that all is well, and nothing said after
    one would ever be suspect.)

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
        hinted_prejudice: `prejudice` of hinted items: an annotator who is told what may be wrong looks again.
            None: as everywhere.
        write_hints: False leaves the hints themselves out and changes nothing else.
        several_share: of the items join two or three answers in one conversation; in its negative any of
            them may be false, and one is.
        text_share: of the items are a question without a picture.
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
        hinted_prejudice: float | None = None,
        write_hints: bool = True,
        several_share: float = 0.0,
        text_share: float = 0.0,
        side: int = 112,
    ):
        self.encoder = encoder
        self.pictures = ScenePictures(encoder.processor)
        self.count = pictures
        self.split, self.start, self.seed, self.side = split, start, seed, side
        self.tagged, self.negatives = tagged, negatives and tagged
        self.prejudice, self.hint_share = prejudice, hint_share
        self.hinted_prejudice = prejudice if hinted_prejudice is None else hinted_prejudice
        self.write_hints = write_hints
        self.answers, self.caption_share = answers, caption_share
        self.several_share, self.text_share = several_share, text_share

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TrainingItem:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        scene = make_scene(self.split, self.start + index, self.seed, self.side)
        talk = self.conversations(scene)
        if not talk.about_picture:
            return TrainingItem(tuple(self.encoder.row(turns, None) for turns in talk.rows), None)
        inputs, tokens = self.pictures(render_scene(scene))
        return TrainingItem(tuple(self.encoder.row(turns, tokens) for turns in talk.rows), inputs)

    def turns(self, scene: Scene) -> list[Turn]:
        """All turns of one picture's conversations, one after another."""
        return [turn for row in self.conversations(scene).rows for turn in row]

    def conversations(self, scene: Scene) -> Talk:
        """The rows of one item: positives, each followed by its negative where there are negatives."""
        rng = random.Random(f"{self.seed} scene {scene.split} {scene.index}")
        hinted = rng.random() < self.hint_share
        # The twin draws as the tagged set does, or it would meet other answers.
        kind = random.Random(f"{self.seed} kind {scene.split} {scene.index}").random()
        if kind < self.text_share:
            return self._text_only(scene)
        records = make_scene_records(
            scene,
            prejudice=self.hinted_prejudice if hinted else self.prejudice,
            tagged=self.tagged,
            negatives=self.negatives,
        )
        stride = 2 if self.negatives else 1
        pairs = [records[at : at + stride] for at in range(0, len(records), stride)]
        if kind < self.text_share + self.several_share:
            joined = [pairs[place] for place in self._choose(rng, len(pairs), rng.choice((2, 3)))]
            return Talk(self._joined(scene, joined), True)
        rows = []
        for place in self._choose(rng, len(pairs), self.answers):
            rows += [(turn,) for turn in self._pair(scene, pairs[place], hinted and self.tagged)]
        return Talk(tuple(rows), True)

    def _choose(self, rng: random.Random, positives: int, wanted: int) -> list[int]:
        """Which positives are shown; number 0 is the caption."""
        chosen: list[int] = []
        for _ in range(min(wanted, positives)):
            if 0 not in chosen and (rng.random() < self.caption_share or len(chosen) == positives - 1):
                chosen.append(0)
            else:
                chosen.append(rng.choice([k for k in range(1, positives) if k not in chosen]))
        return chosen

    def _pair(self, scene: Scene, pair: Sequence[Mapping[str, Any]], hinted: bool) -> list[Turn]:
        turns = [turns_of(record)[0] for record in pair]
        said = pair[0]["conversations"][1]
        if not (hinted and self.write_hints and may_be_hinted(said)):
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

    def _joined(self, scene: Scene, pairs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[Conversation, ...]:
        """The answers as the turns of one conversation, and of another where some are false."""
        turns = [[turns_of(record)[0] for record in pair] for pair in pairs]
        right = tuple(pair[0] for pair in turns)
        if not self.negatives:
            return (right,)
        rng = random.Random(f"{self.seed} false {scene.split} {scene.index}")
        false = rng.randrange(len(turns))
        wrong = tuple(pair[k == false or rng.random() < 0.3] for k, pair in enumerate(turns))
        return (right, wrong)

    def _text_only(self, scene: Scene) -> Talk:
        asked = make_text_question(np.random.default_rng([self.seed, scene.index, 5]))
        answers = [asked.answer, asked.negative] if self.negatives else [asked.answer]
        if not self.tagged:
            answers = [remove_tags(answer) for answer in answers]
        return Talk(tuple((Turn(asked.question, answer),) for answer in answers), False)


class ScenePictures(PictureEncoder):
    """Encodes pictures of scenes exactly as the image processor does, in a tenth of the time.

    For a picture that already has the model's size, an image processor such as CLIP's only rescales and
    normalises: 256 numbers for each channel, which are looked up. They come out of the processor itself, once
    for each size, and a picture of noise must come out equal to the last bit. All else takes the processor.
    """

    def __init__(self, processor: Any):
        super().__init__(processor)
        self._tables: dict[tuple[int, ...], Table | None] = {}

    def _encode(self, picture: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
        table = self._table(picture)
        if table is None:
            return super()._encode(picture)
        return {"pixel_values": torch.from_numpy(_look_up(table, picture))}

    def _table(self, picture: npt.NDArray[np.uint8]) -> Table | None:
        """The table for pictures of this size, None where the processor does more than look up."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"a picture must be uint8 of shape (height, width, 3), got {picture.dtype} of {picture.shape}"
            )
        size = picture.shape[:2]
        if size not in self._tables:
            self._tables[size] = self._learn(*size)
        return self._tables[size]

    def _learn(self, height: int, width: int) -> Table | None:
        if height * width < 256:
            return None
        ramp = (np.arange(height * width) % 256).astype(np.uint8).reshape(height, width, 1).repeat(3, axis=2)
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = super()._encode(ramp)
        if set(out) != {"pixel_values"} or out["pixel_values"].shape != (1, 3, height, width):
            return None
        table = out["pixel_values"].reshape(3, -1)[:, :256].numpy().copy()
        same = np.array_equal(_look_up(table, noise), super()._encode(noise)["pixel_values"].numpy())
        return table if same else None


def _false_phrases(scene: Scene, rng: random.Random, draws: int = 6) -> list[str]:
    """What a model says wrongly of this scene: what prejudice adds, and the false phrases of negatives."""
    draw = np.random.default_rng(rng.getrandbits(64))
    described = write_caption(scene, draw, prejudice=1.0)
    expected = [phrase.text for phrase in described.phrases if not phrase.is_true]
    return expected + [write_negative_caption(scene, described, draw).hint for _ in range(draws)]


def _look_up(table: Table, picture: npt.NDArray[np.uint8]) -> Table:
    """(height, width, 3) uint8 to (1, 3, height, width) float32."""
    out = np.empty((1, 3, *picture.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], picture[:, :, channel], out=out[0, channel], mode="clip")
    return out
