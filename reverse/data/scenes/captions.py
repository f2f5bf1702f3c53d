"""Captions of a scene by a prejudiced annotator, and their negatives.

The annotator names what is there and, in more than half of the captions, one object that is only typical of
the theme. A model trained on this hallucinates as one trained on machine-written captions does. A negative is
the same caption with one phrase made false, ending at `</UN>`.

    >>> scene = make_scene("test", 123)
    >>> write_caption(scene, prejudice=0).text
    'There is <SPAN>a dog</CN> ...'
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import numpy as np

from reverse.data.scenes.object_names import UNCOUNTABLE, find_lookalikes, make_noun_phrase
from reverse.data.scenes.scene import (
    SPLITS,
    USUAL,
    Scene,
    SceneObject,
    draw_option,
    draw_other_option,
    draw_weighted_option,
)
from reverse.data.scenes.themes import OBJECT_NAMES, THEME_NAMES, THEMES
from reverse.errors import DataError
from reverse.tokens.spans import CN, SPAN, UN

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

THEME_SHARE = 0.12  # of the captions open with the kind of place
PLACED_SHARE = 0.8  # of the sentences about one object whose place is clear: a quarter of all sentences
DROP_SMALL = 0.05  # of the small objects are not named
MAX_SENTENCES = 4
PREJUDICE = 0.6  # share of captions whose annotator names an absent object that the theme expects


@dataclass(frozen=True)
class ScenePhrase:
    """A key phrase: its kind ("object", "place" or "theme"), what it names, how many, and whether it is true.

    `text` is as inside a sentence (lower case); for a place, `object_name` is the object that stands there.
    """

    kind: str
    name: str
    count: int
    is_true: bool
    text: str
    object_name: str = ""


@dataclass(frozen=True)
class Sentence:
    """A template and the phrases for its slots."""

    template: str
    slots: dict[str, ScenePhrase]

    @property
    def slot_order(self) -> tuple[str, ...]:
        """Return the slots that hold phrases, in the order of the text."""
        return tuple(slot for slot in _split_template(self.template)[1::2] if slot not in ("is", "are"))

    def write(self, stop: str | None = None) -> str:
        """Return the tagged sentence; with `stop`, only up to that slot's phrase, which `</UN>` closes."""
        text = ""
        for i, piece in enumerate(_split_template(self.template)):
            if i % 2 == 0:
                text += piece
            elif piece in ("is", "are"):
                text += "are" if self.slots["0"].count > 1 or piece == "are" else "is"
            else:
                phrase = self.slots[piece].text
                text += SPAN + (phrase if text else phrase[0].upper() + phrase[1:])
                if piece == stop:
                    return text + UN
                text += CN
        return text


@lru_cache(maxsize=256)
def _split_template(template: str) -> tuple[str, ...]:
    """Split a template into text (at even indices) and slots (at odd ones)."""
    return tuple(re.split(r"\{(\w+)\}", template))


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
    `</CN>` like everything the annotator believes; 0 gives a true caption. Without `rng` the caption depends
    on the scene alone. Raises DataError if prejudice is not in 0..1.
    """
    if not 0 <= prejudice <= 1:
        raise DataError(f"prejudice must lie in [0, 1], got {prejudice}: it is a probability, try 0.6")
    rng = make_scene_rng(scene, 1) if rng is None else np.random.default_rng(rng)
    phrases = _choose_objects(scene, rng)
    if rng.random() < prejudice:
        name = draw_expected_absent(scene, rng)
        false = make_object_phrase(scene, name, _draw_count(name, rng))
        position = rng.random()
        if position < 0.65:
            at = len(phrases)
        elif position < 0.85:
            at = len(phrases) - 1
        else:
            at = draw_option(rng, range(len(phrases) + 1))
        phrases.insert(max(0, at), false)
    sentences: list[Sentence] = []
    while phrases:
        free = MAX_SENTENCES - len(sentences) - 1
        is_pair = len(phrases) > 1 and (
            len(phrases) > 2 * free or rng.random() < (0.4 if len(phrases) > 2 else 0.25)
        )
        taken, phrases = phrases[: 1 + is_pair], phrases[1 + is_pair :]
        sentences.append(_draw_sentence(scene, rng, taken, is_first=not sentences))
    return Caption(
        " ".join(sentence.write() for sentence in sentences),
        tuple(sentence.slots[slot] for sentence in sentences for slot in sentence.slot_order),
        tuple(sentences),
    )


def write_negative_caption(
    scene: Scene, caption: Caption, rng: np.random.Generator | int | None = None
) -> NegativeCaption:
    """Make one phrase of `caption` false, or add a false one at its end.

    The false phrase is one that models write: an object that the theme expects, one that looks alike, a wrong
    number or place. The text before it is the caption's own, including the annotator's prejudice.
    """
    rng = make_scene_rng(scene, 2) if rng is None else np.random.default_rng(rng)
    sentences = caption.sentences
    named = {phrase.name for phrase in caption.phrases}
    if rng.random() < 0.3:
        added = _add_false_object(scene, sentences, named, rng)
        if added is not None:
            return added
    slots = [
        (i, slot)
        for i, sentence in enumerate(sentences)
        for slot in sentence.slot_order
        # A place that stands before its object cannot be false yet.
        if slot != "p" or sentence.slot_order.index("p") > sentence.slot_order.index("0")
    ]
    # Later phrases become false more often: that is where models hallucinate.
    weights = list(accumulate(1 + 0.4 * at for at in range(len(slots))))
    i, slot = draw_weighted_option(rng, slots, weights)
    false = _draw_false_phrase(scene, sentences[i].slots[slot], named, rng)
    changed = replace(sentences[i], slots=sentences[i].slots | {slot: false})
    return _end_caption(sentences[:i], changed, slot)


def make_scene_rng(scene: Scene, purpose: int) -> np.random.Generator:
    """Return a generator that depends only on the scene and on its purpose."""
    return np.random.default_rng([scene.seed, SPLITS.index(scene.split), scene.index, purpose])


def make_object_phrase(scene: Scene, name: str, count: int) -> ScenePhrase:
    is_true = scene.truth.get(name, 0) == count
    return ScenePhrase("object", name, count, is_true, make_noun_phrase(name, count))


def make_theme_phrase(scene: Scene, name: str) -> ScenePhrase:
    return ScenePhrase("theme", name, 1, name == scene.theme, THEMES[name].phrase)


def draw_expected_absent(scene: Scene, rng: np.random.Generator, exclude: Collection[str] = ()) -> str:
    """Draw an object that is not in the scene, weighted by how much the theme expects it."""
    weights = {
        name: weight
        for name, weight in THEMES[scene.theme].objects.items()
        if name not in scene.truth and name not in exclude
    }
    if not weights:
        return draw_absent(scene, rng, exclude)
    return draw_weighted_option(rng, list(weights), list(accumulate(weights.values())))


def draw_absent(scene: Scene, rng: np.random.Generator, exclude: Collection[str] = ()) -> str:
    """Draw any object that is not in the scene, all with equal probability."""
    names = [name for name in OBJECT_NAMES if name not in scene.truth and name not in exclude]
    return draw_option(rng, names)


def find_place(scene: Scene, thing: SceneObject) -> str | None:
    """Return where an object clearly is, as a key of PLACES; None if two people might disagree."""
    dx, dy = thing.x / scene.side - 0.5, thing.y / scene.side - 0.5
    if max(abs(dx), abs(dy)) < 0.13:
        return "middle"
    if abs(dx) > 0.18 and abs(dx) > 1.5 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 0.18 and abs(dy) > 1.5 * abs(dx):
        return "top" if dy < 0 else "bottom"
    return None


def find_false_places(scene: Scene, thing: SceneObject) -> list[str]:
    """Return the places where an object clearly is not."""
    if find_place(scene, thing) == "middle":
        return [place for place in PLACES if place != "middle"]
    dx, dy = thing.x / scene.side - 0.5, thing.y / scene.side - 0.5
    is_false = {"left": dx > 0.06, "right": dx < -0.06, "top": dy > 0.06, "bottom": dy < -0.06}
    is_false["middle"] = max(abs(dx), abs(dy)) > 0.25
    return [place for place in is_false if is_false[place]]


def find_unique_object(scene: Scene, name: str) -> SceneObject | None:
    """Return the object called `name` if there is exactly one."""
    found = [thing for thing in scene.objects if thing.name == name]
    return found[0] if len(found) == 1 else None


def _draw_false_object(
    scene: Scene, true_name: str, named: Collection[str], rng: np.random.Generator
) -> ScenePhrase:
    """Draw an absent object that a model might name instead: mostly one of the theme, else a lookalike, else
    any.
    """
    draw = rng.random()
    lookalikes = [
        name for name in find_lookalikes(true_name) if name not in scene.truth and name not in named
    ]
    if draw < 0.3 and lookalikes:
        name = draw_option(rng, lookalikes)
    elif draw < 0.9:
        name = draw_expected_absent(scene, rng, named)
    else:
        name = draw_absent(scene, rng, named)
    return make_object_phrase(scene, name, _draw_count(name, rng))


def _draw_count(name: str, rng: np.random.Generator) -> int:
    """Draw a number for an absent object, distributed as the numbers of present ones."""
    return 1 if name in UNCOUNTABLE else draw_option(rng, USUAL.counts)


def _choose_objects(scene: Scene, rng: np.random.Generator) -> list[ScenePhrase]:
    """Choose a phrase for each class, large and central ones first; small ones may be left out."""
    keys = []
    is_dropped = False
    for name in scene.truth:
        largest = max((thing for thing in scene.objects if thing.name == name), key=lambda thing: thing.size)
        distance = max(abs(largest.x / scene.side - 0.5), abs(largest.y / scene.side - 0.5))
        is_small = largest.size < 0.15 * scene.side and len(scene.truth) > 2
        if is_small and not is_dropped and rng.random() < DROP_SMALL:
            is_dropped = True
        else:
            keys.append((distance - 2 * largest.size / scene.side + 0.5 * rng.random(), name))
    return [make_object_phrase(scene, name, scene.truth[name]) for _, name in sorted(keys)]


def _draw_sentence(
    scene: Scene, rng: np.random.Generator, phrases: Sequence[ScenePhrase], is_first: bool
) -> Sentence:
    slots = {str(i): phrase for i, phrase in enumerate(phrases)}
    if is_first and rng.random() < THEME_SHARE:
        return Sentence(FIRST_THEME[len(phrases) - 1], slots | {"t": make_theme_phrase(scene, scene.theme)})
    if len(phrases) == 2:
        return Sentence(draw_option(rng, FIRST_TWO if is_first else LATER_TWO), slots)
    name = phrases[0].name
    thing = find_unique_object(scene, name)
    place = find_place(scene, thing) if thing else None
    if place is not None and rng.random() < PLACED_SHARE:
        phrase = ScenePhrase("place", place, 1, True, PLACES[place], name)
        return Sentence(draw_option(rng, PLACED), slots | {"p": phrase})
    return Sentence(draw_option(rng, FIRST_ONE if is_first else LATER_ONE), slots)


def _draw_false_phrase(
    scene: Scene, phrase: ScenePhrase, named: Collection[str], rng: np.random.Generator
) -> ScenePhrase:
    """Draw a false phrase that can replace `phrase`."""
    if phrase.kind == "place":
        thing = find_unique_object(scene, phrase.object_name)
        assert thing is not None  # a caption gives places of unique objects only
        place = draw_option(rng, find_false_places(scene, thing))
        return ScenePhrase("place", place, 1, False, PLACES[place], phrase.object_name)
    if phrase.kind == "theme":
        return make_theme_phrase(scene, draw_other_option(rng, THEME_NAMES, scene.theme))
    name = phrase.name
    if name in scene.truth and name not in UNCOUNTABLE and rng.random() < 0.12:
        # Never "a dog" for two dogs: that would not be false.
        true = scene.truth[name]
        counts = {1: (2, 2, 2, 3), 2: (3,), 3: (2, 4)}.get(true, (true - 1, true + 1))
        return make_object_phrase(scene, name, draw_option(rng, counts))
    return _draw_false_object(scene, name, named, rng)


def _add_false_object(
    scene: Scene, sentences: tuple[Sentence, ...], named: Collection[str], rng: np.random.Generator
) -> NegativeCaption | None:
    """Add an object to the caption: to the last sentence if it has room, else in a new sentence."""
    last = sentences[-1]
    false = _draw_false_object(scene, last.slots["0"].name, named, rng)
    if last.slot_order == ("0",) and rng.random() < 0.5:
        template = draw_option(rng, FIRST_TWO if len(sentences) == 1 else LATER_TWO)
        return _end_caption(sentences[:-1], Sentence(template, last.slots | {"1": false}), "1")
    if len(sentences) == MAX_SENTENCES:  # a fifth sentence would show that the caption is false
        return None
    return _end_caption(sentences, Sentence(draw_option(rng, LATER_ONE), {"0": false}), "0")


def _end_caption(before: Sequence[Sentence], sentence: Sentence, slot: str) -> NegativeCaption:
    """Return the sentences up to the false phrase in `slot` of the last one."""
    text = " ".join([*(earlier.write() for earlier in before), sentence.write(stop=slot)])
    return NegativeCaption(text, sentence.slots[slot].text, sentence.slots[slot])
