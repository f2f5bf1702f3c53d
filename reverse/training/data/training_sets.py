"""What is trained on: records on disk in the published shape, or scenes drawn as they are asked for.

Both give an `Item`: pictures and the rows about them, determined by the index and the seed alone, whatever
worker asks. `collator.Collator` makes a batch of items.

    RecordDataset("reverse_ft.json", "playground/data", encoder, seed=0)
    SceneDataset(encoder, pictures=500_000, tagged=True)
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from reverse.data.records.published_set import open_records
from reverse.data.records.record_rules import find_unsupported_keys
from reverse.data.records.schema import ANSWER_TYPE, pictures_of
from reverse.data.scenes import Scene, caption, make_scene, negative, render, scene_records
from reverse.data.scenes.captions import PREJUDICE
from reverse.data.scenes.text_questions import text_question
from reverse.errors import DataError
from reverse.tokens import strip
from reverse.tokens.spans import UN
from reverse.training.data.encoding import Encoder, Item, Row, Turn, turns_of
from reverse.training.data.fast_pictures import PictureEncoder, join_pictures
from reverse.training.data.training_hints import choose_hints

__all__ = ["RecordDataset", "SceneDataset", "Talk", "may_be_hinted"]

Conversation = tuple[Turn, ...]
_logger = logging.getLogger(__name__)

HINT_SHARE = 0.2  # of the positive general answers name wrong phrases, as published
# Of the hinted negatives say a phrase that was hinted. A larger share would make every other phrase look
# safe after a hint: at one half, hints lowered p(</UN>) of new wrong phrases so much that they hurt.
HINTED_AGAIN = 0.15
_CHARACTERS = 4  # about as many as an id stands for
_LIST = re.compile(r'"images?"\s*:\s*\[')
MOST_REPLACED = 100  # records in a row whose pictures are damaged: more are no bad records but a wrong folder


@dataclass(frozen=True, slots=True)
class Talk:
    """Conversations that make the rows of one item, and whether they are about its picture."""

    rows: tuple[Conversation, ...]
    about_picture: bool


class RecordDataset(Dataset[Item]):
    """Records of an imported set, a JSON list or JSONL; each record, with all its turns, is one row.

    The records are mapped, not loaded (`reverse.data.records.published_set`); a JSON file is read through
    once, to find
    where they stand, and of 1.3M records an import (`reverse data import`) opens at once. A positive general
    answer carries its record's `hint` with probability `hint_share`; the draw depends on seed and
    index.

    Args:
        path: an imported folder, a folder of scenes, or a JSON file.
        image_root: what the records' images are relative to.
        encoder: makes the rows.
        hint_share: probability, 0 for none.
        seed: of the draws.
        limit: the first so many records only; None: all.
        keep_broken: what is no record of a JSON file is an error when it is drawn, not at once.

    `replace_damaged`: train the next record in the place of one with a picture that cannot be decoded, with a
    warning, instead of raising; which one it is depends on the index alone.
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
        keep_broken: bool = False,
    ):
        self.path = Path(path)
        self.image_root = Path(image_root)
        self.encoder = encoder
        self.pictures = PictureEncoder(encoder.processor)
        self.hint_share = hint_share
        self.seed = seed
        self.replace_damaged = False
        self._reported: set[int] = set()  # records whose picture is damaged
        self.records = open_records(self.path, keep_broken=keep_broken)
        count = len(self.records)
        self.kept = np.arange(count if limit is None else min(limit, count))  # (items,), numbers of records

    def __len__(self) -> int:
        return len(self.kept)

    def leave_out(self, numbers: Sequence[int]) -> None:
        """From now on without these records; the others keep their numbers, and so what is drawn for them."""
        self.kept = np.setdiff1d(self.kept, np.array(numbers, dtype=np.int64))

    def __getitem__(self, index: int) -> Item:
        """The item of a record; with `replace_damaged`, that of the next one whose pictures can be decoded.

        Raises ValueError naming the record and its picture where that is damaged.
        """
        index = range(len(self))[index]
        for step in range(min(MOST_REPLACED, len(self))):
            number = int(self.kept[(index + step) % len(self)])
            record = self.record(number)
            names = pictures_of(record)
            if not names:
                return Item((self._row(number, record, None),), None)
            try:
                pictures = [self._open(number, name) for name in names]
            except ValueError as error:
                if not self.replace_damaged:
                    raise
                if number not in self._reported:
                    self._reported.add(number)
                    _logger.warning("%s; the next record is trained in its place", error)
                continue
            encoded = [self.pictures(picture) for picture in pictures]
            row = self._row(number, record, [tokens for _, tokens in encoded])
            shown = [inputs for inputs, _ in encoded[: row.pictures]]  # without those of turns that are cut
            return Item((row,), join_pictures(shown) if shown else None)
        raise DataError(
            f"{self.path}, record {self.kept[index]} and those after it: none of {MOST_REPLACED} pictures in "
            f"a row can be decoded: is {self.image_root} the right folder?"
        )

    def _open(self, number: int, name: str) -> Any:
        """The picture of a record, decoded."""
        from reverse.data.pictures.opening import open_image, resolve_image

        try:
            return open_image(resolve_image(self.image_root, name))
        except (ValueError, OSError) as error:
            raise DataError(
                f"{self.path}, record {number}: {error} (`reverse data check --images` finds all such "
                "pictures, data.skip_bad=true trains the next record in its place)"
            ) from error

    def row(self, index: int, image_tokens: int) -> Row:
        """Ids and labels of a record without opening its pictures, each of `image_tokens` ids."""
        index = int(self.kept[index])
        record = self.record(index)
        return self._row(index, record, [image_tokens] * len(pictures_of(record)))

    def _row(self, index: int, record: Mapping[str, Any], image_tokens: Sequence[int] | None) -> Row:
        try:
            return self.encoder.row(self.turns(index, record), image_tokens)
        except ValueError as error:
            # It is shown on terminals, which take no half of a surrogate pair.
            said = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
            raise DataError(f"{self.path}, record {index}: {error}; the record: {said[:600]}") from error

    def lengths(self) -> npt.NDArray[np.int64]:
        """About how long each record is, (records,) int64, in characters; negative without a picture.

        A first picture counts nothing, for it stands in nearly all; each further one as what it takes."""
        texts = map(self.records.text, self.kept.tolist())
        keys = ('"image"', '"images"')
        each = _CHARACTERS * self.pictures.usual()
        return np.array(
            [len(t) + each * _further(t) if any(k in t for k in keys) else -len(t) for t in texts],
            dtype=np.int64,
        )

    def record(self, number: int) -> dict[str, Any]:
        """Record `number` as it stands in the file."""
        return self.records[number]

    def turns(self, number: int, record: Mapping[str, Any]) -> list[Turn]:
        """What record `number` says, with the hints that are drawn for it.

        Raises ValueError for a key that training would ignore.
        """
        for fault in find_unsupported_keys(record):
            raise DataError(fault.message)
        rng, turns = random.Random(f"{self.seed} record {number}"), []
        for turn, said in zip(turns_of(record), record["conversations"][1::2], strict=True):
            # A hint stands behind the question's last word: pictures alone have none.
            wordless = turn.content and not turn.question
            if may_be_hinted(said) and rng.random() < self.hint_share and not wordless:
                turn = replace(turn, hints=choose_hints(rng, turn.answer, own=[said["hint"]]))
            turns.append(turn)
        return turns


class SceneDataset(Dataset[Item]):
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
        self.pictures = PictureEncoder(encoder.processor)
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

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        scene = make_scene(self.split, self.start + index, self.seed, self.side)
        talk = self.conversations(scene)
        if not talk.about_picture:
            return Item(tuple(self.encoder.row(turns, None) for turns in talk.rows), None)
        inputs, tokens = self.pictures(render(scene))
        return Item(tuple(self.encoder.row(turns, tokens) for turns in talk.rows), inputs)

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
        records = scene_records(
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
        asked = text_question(np.random.default_rng([self.seed, scene.index, 5]))
        answers = [asked.answer, asked.negative] if self.negatives else [asked.answer]
        if not self.tagged:
            answers = [strip(answer) for answer in answers]
        return Talk(tuple((Turn(asked.question, answer),) for answer in answers), False)


def _further(text: str) -> int:
    """How many pictures beside the first the text of a record names; only lists of them are read."""
    if not _LIST.search(text):
        return 0
    try:
        return max(0, len(pictures_of(json.loads(text))) - 1)
    except (ValueError, AttributeError):  # broken: it is refused when it is drawn
        return 0


def may_be_hinted(answer: Mapping[str, Any]) -> bool:
    """A general answer with a hint and without a wrong phrase."""
    return answer.get("A_type") == ANSWER_TYPE and bool(answer.get("hint")) and UN not in answer["value"]


def _false_phrases(scene: Scene, rng: random.Random, draws: int = 6) -> list[str]:
    """What a model says wrongly of this scene: what prejudice adds, and the false phrases of negatives."""
    draw = np.random.default_rng(rng.getrandbits(64))
    described = caption(scene, draw, prejudice=1.0)
    expected = [phrase.text for phrase in described.phrases if not phrase.true]
    return expected + [negative(scene, described, draw).hint for _ in range(draws)]
