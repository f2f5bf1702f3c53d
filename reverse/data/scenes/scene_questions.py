"""Questions about a scene with a true answer and a false one, and all of it as published instruct records.

>>> [question.question for question in questions(make_scene("test", 123), np.random.default_rng(0))]
['Is there a dog in the picture?', ...]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reverse.data.records.schema import NEGATIVE, make_record
from reverse.data.scenes.captions import (
    CN,
    PLACES,
    PREJUDICE,
    SPAN,
    UN,
    draw_absent,
    draw_expected_absent,
    find_false_places,
    find_place,
    find_unique_object,
    make_scene_rng,
    write_caption,
    write_negative_caption,
)
from reverse.data.scenes.object_names import (
    GROUPS,
    NUMBERS,
    PAIR_NOUNS,
    UNCOUNTABLE,
    find_lookalikes,
    make_noun_phrase,
    make_plural,
)
from reverse.data.scenes.scene import Scene, SceneObject, draw_option
from reverse.data.scenes.themes import COLOURS, THEME_NAMES, THEMES

CAPTION_REQUESTS = (
    "Describe this image.",
    "Describe the picture.",
    "What is in this picture?",
    "What does the picture show?",
    "Tell me what you see.",
)
GROUP_QUESTIONS = {
    "animals": ("Which animals are there?", "no animals"),
    "vehicles": ("Which vehicles are there?", "no vehicles"),
    "food": ("What can be eaten here?", "no food"),
    "furniture": ("Which furniture is there?", "no furniture"),
}
ANSWER_TYPES = {"yes_no": "yes_no", "count": "number"}  # every other kind: general_answer


@dataclass(frozen=True)
class SceneQuestion:
    """kind: yes_no, count, place, ground or open. `answer` and `negative` are tagged; `hint` is the false
    phrase of the negative."""

    kind: str
    question: str
    answer: str
    negative: str
    hint: str

    @property
    def answer_type(self) -> str:
        return ANSWER_TYPES.get(self.kind, "general_answer")


def make_questions(scene: Scene, rng: np.random.Generator | int | None = None) -> list[SceneQuestion]:
    """Five or six questions: two yes/no, a number, where, which place or ground, an open one."""
    rng = make_scene_rng(scene, 3) if rng is None else np.random.default_rng(rng)
    asked = [_yes_no(scene, rng, True), _yes_no(scene, rng, False), _count(scene, rng)]
    place = _place(scene, rng)
    return [*asked, *([place] if place else []), _ground(scene, rng), _open(scene, rng)]


def make_scene_records(
    scene: Scene,
    rng: np.random.Generator | int | None = None,
    prejudice: float = PREJUDICE,
    tagged: bool = True,
    negatives: bool = True,
) -> list[dict]:
    """The published instruct records of a scene: caption and questions, each followed by its negative.

    A negative is a record of its own, with "-neg" at the end of its id, and both carry its false phrase as
    `hint`. With `tagged=False`: the same positive answers without tags, hints or negatives.
    """
    rng = make_scene_rng(scene, 4) if rng is None else np.random.default_rng(rng)
    described = write_caption(scene, rng, prejudice)
    false = write_negative_caption(scene, described, rng)
    request = draw_option(rng, CAPTION_REQUESTS) if rng.random() < 0.5 else CAPTION_REQUESTS[0]
    turns = [("caption", request, described.text, false.text, false.hint, "general_answer")]
    for i, asked in enumerate(make_questions(scene, rng)):
        turns.append((f"q{i}", asked.question, asked.answer, asked.negative, asked.hint, asked.answer_type))
    image = f"images/{scene.id}.png"
    records = []
    for suffix, question, answer, wrong, hint, kind in turns:
        name = f"{scene.id}-{suffix}"
        if not tagged:
            records.append(make_record(name, image, question, strip(answer), kind))
            continue
        records.append(make_record(name, image, question, answer, kind, hint))
        if negatives:
            records.append(make_record(name + NEGATIVE, image, question, wrong, kind, hint))
    return records


def strip(text: str) -> str:
    return re.sub(r"</?(?:SPAN|CN|UN)>", "", text)


def _yes(phrase: str) -> str:
    return f"{SPAN}{phrase}{CN}"


def _no(phrase: str) -> str:
    return f"{SPAN}{phrase}{UN}"


def _yes_no(scene: Scene, rng: np.random.Generator, present: bool) -> SceneQuestion:
    name = draw_option(rng, list(scene.truth)) if present else _missing(scene, rng)
    phrase = make_noun_phrase(name)
    question = draw_option(
        rng, (f"Is there {phrase} in the picture?", f"Can you see {phrase}?", f"Is there {phrase} here?")
    )
    right, wrong = ("Yes", "No") if present else ("No", "Yes")
    return SceneQuestion("yes_no", question, _yes(right), _no(wrong), wrong.lower())


def _missing(scene: Scene, rng: np.random.Generator) -> str:
    """An absent object worth asking for: mostly the theme's, some lookalikes of what is there, some any."""
    draw = rng.random()
    alike = [n for n in find_lookalikes(draw_option(rng, list(scene.truth))) if n not in scene.truth]
    if draw < 0.2 and alike:
        return draw_option(rng, alike)
    return draw_expected_absent(scene, rng) if draw < 0.85 else draw_absent(scene, rng)


def _count(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    several = [name for name, count in scene.truth.items() if count > 1]
    present = [name for name in scene.truth if name not in UNCOUNTABLE]
    draw = rng.random()
    if several and draw < 0.5:
        name = draw_option(rng, several)
    elif present and draw < 0.85:
        name = draw_option(rng, present)
    else:
        name = draw_expected_absent(scene, rng, UNCOUNTABLE)
    true = scene.truth.get(name, 0)
    wrong = draw_option(
        rng, {0: (1, 1, 2), 1: (0, 2, 2, 3), 2: (1, 3, 3), 3: (2, 2, 4)}.get(true, (true - 1, true + 1))
    )
    many = f"pairs of {name}" if name in PAIR_NOUNS else make_plural(name)
    words = [("None" if n == 0 else NUMBERS[n].capitalize()) for n in (true, wrong)]
    return SceneQuestion(
        "count", f"How many {many} are there?", _yes(words[0]), _no(words[1]), words[1].lower()
    )


def _place(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    """Where something is; of something that is not there, one time in five, that it is not."""
    if rng.random() < 0.2:
        name = draw_expected_absent(scene, rng, (*UNCOUNTABLE, *PAIR_NOUNS))
        wrong = PLACES[draw_option(rng, tuple(PLACES))]
        return SceneQuestion(
            "place",
            f"Where is the {name}?",
            f"There is {_yes(f'no {name}')}.",
            f"The {name} is {_no(wrong)}",
            wrong,
        )
    clear = []
    for name, count in scene.truth.items():
        thing = find_unique_object(scene, name) if count == 1 else None
        place = find_place(scene, thing) if thing else None
        if thing and place:
            clear.append((name, thing, place))
    if not clear:
        return None
    name, thing, place = draw_option(rng, clear)
    wrong = PLACES[draw_option(rng, find_false_places(scene, thing))]
    verb = "are" if name in PAIR_NOUNS else "is"
    return SceneQuestion(
        "place", f"Where {verb} the {name}?", f"The {name} {verb} {_yes(PLACES[place])}.",
        f"The {name} {verb} {_no(wrong)}", wrong,
    )  # fmt: skip


def _ground(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    if rng.random() < 0.5:
        colour = scene.ground.colour
        wrong = draw_option(rng, [other for other in COLOURS if other != colour])
        return SceneQuestion(
            "ground",
            "What colour is the ground?",
            f"The ground is {_yes(colour)}.",
            f"The ground is {_no(wrong)}",
            wrong,
        )
    wrong = THEMES[draw_option(rng, [name for name in THEME_NAMES if name != scene.theme])].phrase
    question = draw_option(rng, ("What place is this?", "Where is this?"))
    return SceneQuestion(
        "ground", question, f"This is {_yes(THEMES[scene.theme].phrase)}.", f"This is {_no(wrong)}", wrong
    )


def _open(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    if rng.random() < 0.4:
        sided = _side(scene, rng)
        if sided is not None:
            return sided
    # Groups with something in them are asked for more often, or every second answer would be "no".
    full = [group for group, names in GROUPS.items() if any(name in scene.truth for name in names)]
    group = draw_option(rng, full) if full and rng.random() < 0.75 else draw_option(rng, tuple(GROUPS))
    question, nothing = GROUP_QUESTIONS[group]
    inside = [name for name in scene.truth if name in GROUPS[group]]
    absent = [name for name in GROUPS[group] if name not in scene.truth]
    expected = [name for name in absent if name in THEMES[scene.theme].objects]
    false = draw_option(rng, expected if expected and rng.random() < 0.8 else absent)
    return _listing(question, [(name, scene.truth[name]) for name in inside], false, nothing, rng)


def _side(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    """What is on one side, asked only where no object stands on the border."""
    place = draw_option(rng, ("left", "right", "top", "bottom"))
    inside = [thing for thing in scene.objects if _toward(scene, thing, place) > 0.08]
    if any(abs(_toward(scene, thing, place)) <= 0.08 for thing in scene.objects):
        return None
    counts: dict[str, int] = {}
    for thing in inside:
        counts[thing.name] = counts.get(thing.name, 0) + 1
    elsewhere = [name for name in scene.truth if name not in counts]
    false = (
        draw_option(rng, elsewhere) if elsewhere and rng.random() < 0.4 else draw_expected_absent(scene, rng)
    )
    return _listing(f"What is {PLACES[place]}?", list(counts.items()), false, "nothing", rng)


def _toward(scene: Scene, thing: SceneObject, place: str) -> float:
    """How far an object's centre lies toward a side, as a share of the picture's side; negative: away."""
    offset = (thing.x if place in ("left", "right") else thing.y) / scene.side - 0.5
    return -offset if place in ("left", "top") else offset


def _listing(
    question: str, found: Sequence[tuple[str, int]], false: str, nothing: str, rng: np.random.Generator
) -> SceneQuestion:
    """ "There is a dog, a cat and two cows.", and the same with one item false, or one too many."""
    hint = make_noun_phrase(false)
    if not found:
        return SceneQuestion("open", question, f"There is {_yes(nothing)}.", f"There is {_no(hint)}", hint)
    texts = [make_noun_phrase(name, count) for name, count in found]
    verb = "are" if found[0][1] > 1 else "is"
    listed = [_yes(text) for text in texts]
    answer = f"There {verb} " + " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]])) + "."
    at = int(rng.random() * (len(listed) + 1))
    before = listed[:at]
    if not before:
        wrong = f"There is {_no(hint)}"
    else:
        join = " and " if at >= len(listed) - 1 else ", "
        wrong = f"There {verb} " + ", ".join(before) + join + _no(hint)
    return SceneQuestion("open", question, answer, wrong, hint)
