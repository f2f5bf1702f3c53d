"""Questions about a scene with a true answer and a false one, and all of it as published instruct records.

>>> [question.question for question in make_questions(make_scene("test", 123), 0)]
['Is there a dog in the picture?', ...]
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reverse.data.records.schema import NEGATIVE, make_record
from reverse.data.scenes.captions import (
    PLACES,
    PREJUDICE,
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
from reverse.data.scenes.scene import Scene, SceneObject, draw_option, draw_other_option
from reverse.data.scenes.themes import COLOURS, THEME_NAMES, THEMES
from reverse.tokens.spans import CN, SPAN, UN, remove_tags

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
    """A question with a true and a false answer.

    kind: yes_no, count, place, ground, open or text. `answer` and `negative` are tagged; `hint` is the false
    phrase of the negative in lower case.
    """

    kind: str
    question: str
    answer: str
    negative: str
    hint: str

    @property
    def answer_type(self) -> str:
        return ANSWER_TYPES.get(self.kind, "general_answer")


def fill_answer(kind: str, question: str, template: str, true: str, false: str) -> SceneQuestion:
    """Make a question whose two answers differ in the phrase at `{}` in the template."""
    before, after = template.split("{}")
    answer, negative = f"{before}{SPAN}{true}{CN}{after}", f"{before}{SPAN}{false}{UN}"
    return SceneQuestion(kind, question, answer, negative, false.lower())


def make_questions(scene: Scene, rng: np.random.Generator | int | None = None) -> list[SceneQuestion]:
    """Make five or six questions: two yes/no, a number, a place, a scene type or ground, and an open one."""
    rng = make_scene_rng(scene, 3) if rng is None else np.random.default_rng(rng)
    made = [
        _ask_yes_no(scene, rng, is_present=True),
        _ask_yes_no(scene, rng, is_present=False),
        _ask_count(scene, rng),
        _ask_place(scene, rng),
        _ask_ground(scene, rng),
        _ask_open(scene, rng),
    ]
    return [question for question in made if question is not None]


def make_scene_records(
    scene: Scene,
    rng: np.random.Generator | int | None = None,
    prejudice: float = PREJUDICE,
    tagged: bool = True,
    negatives: bool = True,
) -> list[dict[str, Any]]:
    """Make the published instruct records of a scene: caption and questions, each followed by its negative.

    A negative is a record of its own, with "-neg" at the end of its id, and both carry its false phrase as
    `hint`. With `tagged=False`: the same true answers without tags, hints or negatives.
    """
    rng = make_scene_rng(scene, 4) if rng is None else np.random.default_rng(rng)
    caption = write_caption(scene, rng, prejudice)
    negative = write_negative_caption(scene, caption, rng)
    request = draw_option(rng, CAPTION_REQUESTS) if rng.random() < 0.5 else CAPTION_REQUESTS[0]
    described = SceneQuestion("caption", request, caption.text, negative.text, negative.hint)
    turns = {"caption": described} | {f"q{i}": made for i, made in enumerate(make_questions(scene, rng))}
    image = f"images/{scene.id}.png"
    records = []
    for suffix, made in turns.items():
        name, kind = f"{scene.id}-{suffix}", made.answer_type
        if not tagged:
            records.append(make_record(name, image, made.question, remove_tags(made.answer), kind))
            continue
        records.append(make_record(name, image, made.question, made.answer, kind, made.hint))
        if negatives:
            records.append(make_record(name + NEGATIVE, image, made.question, made.negative, kind, made.hint))
    return records


def ask_presence(name: str) -> str:
    return f"Is there {make_noun_phrase(name)} in the picture?"


def ask_number(name: str) -> str:
    return f"How many {f'pairs of {name}' if name in PAIR_NOUNS else make_plural(name)} are there?"


def write_number(number: int) -> str:
    """Return a number as an answer: "None", "One", "Two" …"""
    return NUMBERS[number].capitalize() if number else "None"


def choose_verb(name: str) -> str:
    """Return "is", or "are" for skis and the like."""
    return "are" if name in PAIR_NOUNS else "is"


def _ask_yes_no(scene: Scene, rng: np.random.Generator, is_present: bool) -> SceneQuestion:
    name = draw_option(rng, list(scene.truth)) if is_present else _draw_missing(scene, rng)
    phrase = make_noun_phrase(name)
    question = draw_option(rng, (ask_presence(name), f"Can you see {phrase}?", f"Is there {phrase} here?"))
    answers = ("Yes", "No") if is_present else ("No", "Yes")
    return fill_answer("yes_no", question, "{}", *answers)


def _draw_missing(scene: Scene, rng: np.random.Generator) -> str:
    """Draw an absent object: mostly one that the theme expects, else a lookalike of a present one or any."""
    draw = rng.random()
    lookalikes = [n for n in find_lookalikes(draw_option(rng, list(scene.truth))) if n not in scene.truth]
    if draw < 0.2 and lookalikes:
        return draw_option(rng, lookalikes)
    return draw_expected_absent(scene, rng) if draw < 0.85 else draw_absent(scene, rng)


def _ask_count(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
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
    wrong = {0: (1, 1, 2), 1: (0, 2, 2, 3), 2: (1, 3, 3), 3: (2, 2, 4)}.get(true, (true - 1, true + 1))
    return fill_answer(
        "count", ask_number(name), "{}", write_number(true), write_number(draw_option(rng, wrong))
    )


def _ask_place(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    """Make a question about the place of an object; one time in five the object is absent."""
    if rng.random() < 0.2:
        name = draw_expected_absent(scene, rng, (*UNCOUNTABLE, *PAIR_NOUNS))
        false = PLACES[draw_option(rng, tuple(PLACES))]
        answer, negative = f"There is {SPAN}no {name}{CN}.", f"The {name} is {SPAN}{false}{UN}"
        return SceneQuestion("place", f"Where is the {name}?", answer, negative, false)
    clear = find_clear_places(scene)
    if not clear:
        return None
    thing, place = draw_option(rng, clear)
    false = PLACES[draw_option(rng, find_false_places(scene, thing))]
    verb = choose_verb(thing.name)
    question, template = f"Where {verb} the {thing.name}?", f"The {thing.name} {verb} {{}}."
    return fill_answer("place", question, template, PLACES[place], false)


def find_clear_places(scene: Scene) -> list[tuple[SceneObject, str]]:
    """Return the unique objects whose place is clear, each with its place."""
    things = [find_unique_object(scene, name) for name in scene.truth]
    return [(thing, place) for thing in things if thing and (place := find_place(scene, thing))]


def _ask_ground(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    if rng.random() < 0.5:
        colour = scene.ground.colour
        false = draw_other_option(rng, COLOURS, colour)
        return fill_answer("ground", "What colour is the ground?", "The ground is {}.", colour, false)
    false = THEMES[draw_other_option(rng, THEME_NAMES, scene.theme)].phrase
    question = draw_option(rng, ("What place is this?", "Where is this?"))
    return fill_answer("ground", question, "This is {}.", THEMES[scene.theme].phrase, false)


def _ask_open(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    if rng.random() < 0.4:
        about_side = _ask_side(scene, rng)
        if about_side is not None:
            return about_side
    # Groups with something in them are asked for more often, or every second answer would be "no".
    full = [group for group, names in GROUPS.items() if any(name in scene.truth for name in names)]
    group = draw_option(rng, full) if full and rng.random() < 0.75 else draw_option(rng, tuple(GROUPS))
    question, nothing = GROUP_QUESTIONS[group]
    found = {name: count for name, count in scene.truth.items() if name in GROUPS[group]}
    absent = [name for name in GROUPS[group] if name not in scene.truth]
    expected = [name for name in absent if name in THEMES[scene.theme].objects]
    false = draw_option(rng, expected if expected and rng.random() < 0.8 else absent)
    return _list_objects(question, found, false, nothing, rng)


def _ask_side(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    """Ask what is on one side; only if no object stands on the border."""
    place = draw_option(rng, ("left", "right", "top", "bottom"))
    found: Counter[str] = Counter()
    for thing in scene.objects:
        offset = (thing.x if place in ("left", "right") else thing.y) / scene.side - 0.5
        toward = -offset if place in ("left", "top") else offset  # share of the picture's side
        if abs(toward) <= 0.08:
            return None
        if toward > 0:
            found[thing.name] += 1
    elsewhere = [name for name in scene.truth if name not in found]
    if elsewhere and rng.random() < 0.4:
        false = draw_option(rng, elsewhere)
    else:
        false = draw_expected_absent(scene, rng)
    return _list_objects(f"What is {PLACES[place]}?", found, false, "nothing", rng)


def _list_objects(
    question: str, found: Mapping[str, int], false: str, nothing: str, rng: np.random.Generator
) -> SceneQuestion:
    """Make a list such as "There is a dog, a cat and two cows.", and one with a false or additional item."""
    hint = make_noun_phrase(false)
    if not found:
        return fill_answer("open", question, "There is {}.", nothing, hint)
    verb = "are" if next(iter(found.values())) > 1 else "is"
    listed = [f"{SPAN}{make_noun_phrase(name, count)}{CN}" for name, count in found.items()]
    answer = " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))
    at = int(rng.random() * (len(listed) + 1))
    if at == 0:
        negative = f"There is {SPAN}{hint}{UN}"
    else:
        join = " and " if at >= len(listed) - 1 else ", "
        negative = f"There {verb} " + ", ".join(listed[:at]) + join + f"{SPAN}{hint}{UN}"
    return SceneQuestion("open", question, f"There {verb} {answer}.", negative, hint)
