"""Captions of a scene by a prejudiced annotator, and their negatives.

The annotator names what is there and, in more than half of the captions, one object that only the theme
expects: so a model learns to hallucinate as it does from machine-written captions. A negative is the same
caption with one phrase made false, ending at `</UN>`.

    >>> scene = make_scene("test", 123)
    >>> caption(scene, prejudice=0).text
    'There is <SPAN>a dog</CN> ...'
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import numpy as np

from reverse.data.scenes.object_names import UNCOUNTABLE, find_lookalikes, make_noun_phrase
from reverse.data.scenes.scene import SPLITS, USUAL, Scene, SceneObject, draw_option, draw_weighted_option
from reverse.data.scenes.themes import OBJECT_NAMES, THEME_NAMES, THEMES
from reverse.errors import DataError

SPAN, CN, UN = "<SPAN>", "</CN>", "</UN>"

PLACES = {
    "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
    "middle": "in the middle",
}  # fmt: skip

# {0} {1}: object phrases, {p}: the place of {0}, {t}: the theme, {is}: the verb for {0}, {are}: for all.
FIRST_ONE = ("The picture shows {0}.", "There {is} {0} here.", "In this picture there {is} {0}.")
FIRST_TWO = (
    "The picture shows {0} and {1}.",
    "There {is} {0} and {1} here.",
    "{0} and {1} {are} in the picture.",
    "In this picture there {is} {0} and {1}.",
)
FIRST_THEME = ("This is {t} with {0}.", "This is {t} with {0} and {1}.")
LATER_ONE = ("There {is} also {0}.", "{0} can be seen too.", "We can also see {0}.")
LATER_TWO = ("There {is} also {0} and {1}.", "{0} and {1} {are} there too.", "We can also see {0} and {1}.")
PLACED = ("There {is} {0} {p}.", "{p} there {is} {0}.", "{0} {is} {p}.")

THEME_SHARE = 0.12  # captions that open with what place it is
PLACED_SHARE = 0.8  # of the sentences on one object, where the place is clear: a quarter of all
DROP_SMALL = 0.05  # of the small objects stay unnamed
MOST_SENTENCES = 4


PREJUDICE = 0.6  # share of captions whose annotator names an absent object that the theme expects


@dataclass(frozen=True)
class ScenePhrase:
    """A key phrase: kind "object", "place", "theme" …, what it names, how many, and whether that is so.

    `text` is as it stands inside a sentence (lower case); for a place, `of` is the object that stands there.
    """

    kind: str
    name: str
    count: int
    true: bool
    text: str
    of: str = ""


@dataclass(frozen=True)
class Sentence:
    template: str
    slots: dict[str, ScenePhrase]

    @property
    def order(self) -> tuple[str, ...]:
        """The slots that hold phrases, as the reader meets them."""
        return _order(self.template)


@dataclass(frozen=True)
class Caption:
    """`text` is tagged; `phrases` stand in the order of the text."""

    text: str
    phrases: tuple[ScenePhrase, ...]
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class NegativeCaption:
    """`text` stops right after `</UN>`; `hint` is the false phrase, in lower case, without tags."""

    text: str
    hint: str
    phrase: ScenePhrase


def write_caption(
    scene: Scene, rng: np.random.Generator | int | None = None, prejudice: float = PREJUDICE
) -> Caption:
    """Describe `scene` in one to four tagged sentences.

    prejudice is the probability that one absent object, which the theme expects, is named too, tagged
    `</CN>` like all that the annotator believes; 0 gives a clean caption. Without `rng` the caption is a
    pure function of the scene. Raises ValueError for a prejudice outside 0..1.
    """
    if not 0 <= prejudice <= 1:
        raise DataError(f"prejudice must lie in [0, 1], got {prejudice}: it is a probability, try 0.6")
    rng = make_scene_rng(scene, 1) if rng is None else np.random.default_rng(rng)
    phrases = _seen(scene, rng)
    if rng.random() < prejudice:
        name = draw_expected_absent(scene, rng)
        false = make_object_phrase(scene, name, _guessed_count(name, rng))
        late = rng.random()
        at = (
            len(phrases)
            if late < 0.65
            else len(phrases) - 1
            if late < 0.85
            else draw_option(rng, range(len(phrases) + 1))
        )
        phrases.insert(max(0, at), false)
    return _assemble(_sentences(scene, rng, phrases))


def write_negative_caption(
    scene: Scene, caption: Caption, rng: np.random.Generator | int | None = None
) -> NegativeCaption:
    """`caption` with one phrase made false for `scene`, or with a false one added at its end.

    What is put there is what models put there: an object that the theme expects, one that looks alike, a
    wrong number or place. The text before it is the caption's own, with the annotator's prejudice if it
    is there.
    """
    rng = make_scene_rng(scene, 2) if rng is None else np.random.default_rng(rng)
    sentences = caption.sentences
    named = {phrase.name for phrase in caption.phrases}
    if rng.random() < 0.3:
        added = _append(scene, sentences, named, rng)
        if added is not None:
            return added
    spots = [
        (i, slot)
        for i, sentence in enumerate(sentences)
        for slot in sentence.order
        if _can_fail(sentence, slot)
    ]
    # Later phrases fail more often: that is where models hallucinate.
    i, slot = draw_weighted_option(rng, spots, list(accumulate(1 + 0.4 * at for at in range(len(spots)))))
    false = _falsify(scene, sentences[i].slots[slot], named, rng)
    return _stop_at(sentences[:i], replace(sentences[i], slots=sentences[i].slots | {slot: false}), slot)


def make_scene_rng(scene: Scene, purpose: int) -> np.random.Generator:
    """A generator that depends on the scene and on what it is for, and on nothing else."""
    return np.random.default_rng([scene.seed, SPLITS.index(scene.split), scene.index, purpose])


def make_object_phrase(scene: Scene, name: str, count: int) -> ScenePhrase:
    return ScenePhrase(
        "object", name, count, scene.truth.get(name, 0) == count, make_noun_phrase(name, count)
    )


def draw_expected_absent(
    scene: Scene, rng: np.random.Generator, exclude: Sequence[str] | set[str] = ()
) -> str:
    """An object that the theme expects, drawn by how much it does, and that is not in the scene."""
    theme = THEMES[scene.theme]
    left = {
        name: weight
        for name, weight in theme.objects.items()
        if name not in scene.truth and name not in exclude
    }
    if not left:
        return draw_absent(scene, rng, exclude)
    return draw_weighted_option(rng, list(left), list(accumulate(left.values())))


def draw_absent(scene: Scene, rng: np.random.Generator, exclude: Sequence[str] | set[str] = ()) -> str:
    return draw_option(
        rng, [name for name in OBJECT_NAMES if name not in scene.truth and name not in exclude]
    )


def find_place(scene: Scene, thing: SceneObject) -> str | None:
    """Where an object clearly is: a key of PLACES, or None where two people might disagree."""
    dx, dy = thing.x / scene.side - 0.5, thing.y / scene.side - 0.5
    if max(abs(dx), abs(dy)) < 0.13:
        return "middle"
    if abs(dx) > 0.18 and abs(dx) > 1.5 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 0.18 and abs(dy) > 1.5 * abs(dx):
        return "top" if dy < 0 else "bottom"
    return None


def find_false_places(scene: Scene, thing: SceneObject) -> list[str]:
    """The places where an object clearly is not."""
    if find_place(scene, thing) == "middle":
        return [place for place in PLACES if place != "middle"]
    dx, dy = thing.x / scene.side - 0.5, thing.y / scene.side - 0.5
    wrong = {"left": dx > 0.06, "right": dx < -0.06, "top": dy > 0.06, "bottom": dy < -0.06}
    wrong["middle"] = max(abs(dx), abs(dy)) > 0.25
    return [place for place, is_wrong in wrong.items() if is_wrong]


def make_place_phrase(place: str, of: str, true: bool) -> ScenePhrase:
    return ScenePhrase("place", place, 1, true, PLACES[place], of)


def make_theme_phrase(scene: Scene, name: str) -> ScenePhrase:
    return ScenePhrase("theme", name, 1, name == scene.theme, THEMES[name].phrase)


def find_unique_object(scene: Scene, name: str) -> SceneObject | None:
    """The object called `name`, if there is exactly one."""
    found = [thing for thing in scene.objects if thing.name == name]
    return found[0] if len(found) == 1 else None


def draw_false_object(
    scene: Scene, instead_of: str, named: set[str], rng: np.random.Generator
) -> ScenePhrase:
    """An absent object that a model might say instead: mostly the theme's, then a lookalike, then any."""
    draw = rng.random()
    alike = [name for name in find_lookalikes(instead_of) if name not in scene.truth and name not in named]
    if draw < 0.3 and alike:
        name = draw_option(rng, alike)
    elif draw < 0.9:
        name = draw_expected_absent(scene, rng, named)
    else:
        name = draw_absent(scene, rng, named)
    return make_object_phrase(scene, name, _guessed_count(name, rng))


def draw_false_count(scene: Scene, name: str, rng: np.random.Generator) -> ScenePhrase:
    """The right object in a wrong number. Never "a dog" for two: that would not be false."""
    true = scene.truth[name]
    wrong = {1: (2, 2, 2, 3), 2: (3,), 3: (2, 4)}.get(true, (true - 1, true + 1))
    return make_object_phrase(scene, name, draw_option(rng, wrong))


def _guessed_count(name: str, rng: np.random.Generator) -> int:
    """How many of something that is not there: as often one as of what is there."""
    return 1 if name in UNCOUNTABLE else draw_option(rng, USUAL.counts)


def _seen(scene: Scene, rng: np.random.Generator) -> list[ScenePhrase]:
    """A phrase for each class, roughly the large and central first."""
    keys = []
    dropped = False
    for name in scene.truth:
        copies = [thing for thing in scene.objects if thing.name == name]
        largest = max(copies, key=lambda thing: thing.size)
        away = max(abs(largest.x / scene.side - 0.5), abs(largest.y / scene.side - 0.5))
        small = largest.size < 0.15 * scene.side and len(scene.truth) > 2
        if small and not dropped and rng.random() < DROP_SMALL:
            dropped = True
        else:
            keys.append((away - 2 * largest.size / scene.side + 0.5 * rng.random(), name))
    return [make_object_phrase(scene, name, scene.truth[name]) for _, name in sorted(keys)]


def _sentences(scene: Scene, rng: np.random.Generator, phrases: list[ScenePhrase]) -> list[Sentence]:
    sentences: list[Sentence] = []
    left = list(phrases)
    while left:
        room = MOST_SENTENCES - len(sentences)
        pair = len(left) > 1 and (
            len(left) > 2 * (room - 1) or rng.random() < (0.4 if len(left) > 2 else 0.25)
        )
        taken, left = left[: 1 + pair], left[1 + pair :]
        sentences.append(_sentence(scene, rng, taken, first=not sentences))
    return sentences


def _sentence(
    scene: Scene, rng: np.random.Generator, phrases: Sequence[ScenePhrase], first: bool
) -> Sentence:
    slots = {str(i): phrase for i, phrase in enumerate(phrases)}
    if first and rng.random() < THEME_SHARE:
        return Sentence(FIRST_THEME[len(phrases) - 1], slots | {"t": make_theme_phrase(scene, scene.theme)})
    if len(phrases) == 2:
        return Sentence(draw_option(rng, FIRST_TWO if first else LATER_TWO), slots)
    thing = find_unique_object(scene, phrases[0].name)
    place = find_place(scene, thing) if thing else None
    if place is not None and rng.random() < PLACED_SHARE:
        return Sentence(
            draw_option(rng, PLACED), slots | {"p": make_place_phrase(place, phrases[0].name, True)}
        )
    return Sentence(draw_option(rng, FIRST_ONE if first else LATER_ONE), slots)


def _assemble(sentences: Sequence[Sentence]) -> Caption:
    return Caption(
        " ".join(_write(sentence) for sentence in sentences),
        tuple(sentence.slots[slot] for sentence in sentences for slot in sentence.order),
        tuple(sentences),
    )


def _can_fail(sentence: Sentence, slot: str) -> bool:
    """A place that stands before its object cannot be false yet."""
    return slot != "p" or sentence.order.index("p") > sentence.order.index("0")


def _falsify(scene: Scene, phrase: ScenePhrase, named: set[str], rng: np.random.Generator) -> ScenePhrase:
    if phrase.kind == "place":
        thing = find_unique_object(scene, phrase.of)
        assert thing is not None  # a place is only ever said of a unique object
        return make_place_phrase(draw_option(rng, find_false_places(scene, thing)), phrase.of, False)
    if phrase.kind == "theme":
        return make_theme_phrase(
            scene, draw_option(rng, [name for name in THEME_NAMES if name != scene.theme])
        )
    if phrase.name in scene.truth and phrase.name not in UNCOUNTABLE and rng.random() < 0.12:
        return draw_false_count(scene, phrase.name, rng)
    return draw_false_object(scene, phrase.name, named, rng)


def _append(
    scene: Scene, sentences: tuple[Sentence, ...], named: set[str], rng: np.random.Generator
) -> NegativeCaption | None:
    """One more object than there is: in the last sentence if it has room, else in one of its own."""
    last = sentences[-1]
    false = draw_false_object(scene, last.slots["0"].name, named, rng)
    if last.order == ("0",) and rng.random() < 0.5:
        template = draw_option(rng, FIRST_TWO if len(sentences) == 1 else LATER_TWO)
        return _stop_at(sentences[:-1], Sentence(template, last.slots | {"1": false}), "1")
    if len(sentences) == MOST_SENTENCES:  # a fifth sentence would give the game away
        return None
    return _stop_at(sentences, Sentence(draw_option(rng, LATER_ONE), {"0": false}), "0")


def _stop_at(before: Sequence[Sentence], sentence: Sentence, slot: str) -> NegativeCaption:
    phrase = sentence.slots[slot]
    text = " ".join([*(_write(earlier) for earlier in before), _write(sentence, stop=slot)])
    return NegativeCaption(text, phrase.text, phrase)


@lru_cache(maxsize=256)
def _pieces(template: str) -> tuple[str, ...]:
    """Literals and slots by turns: even places are literals, odd ones slots."""
    return tuple(re.split(r"\{(\w+)\}", template))


@lru_cache(maxsize=256)
def _order(template: str) -> tuple[str, ...]:
    return tuple(slot for slot in _pieces(template)[1::2] if slot not in ("is", "are"))


def _write(sentence: Sentence, stop: str | None = None) -> str:
    """The tagged sentence; with `stop`, up to that slot's phrase, closed by `</UN>`."""
    text = ""
    slots = sentence.slots
    for i, piece in enumerate(_pieces(sentence.template)):
        if i % 2 == 0:
            text += piece
        elif piece in ("is", "are"):
            text += "are" if slots["0"].count > 1 or piece == "are" else "is"
        else:
            phrase = slots[piece].text
            text += SPAN + (phrase if text else phrase[0].upper() + phrase[1:])
            if piece == stop:
                return text + UN
            text += CN
    return text
