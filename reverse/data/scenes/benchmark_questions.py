"""What the benchmarks ask of one scene, each with its true answer: AMBER, MME, MMHal and HaloQuest rows.

    >>> [row["answer"] for row in mme_questions(make_scene("test", 1))]
    ['Yes', 'No']

Every function is a pure function of its scene.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from reverse.data.scenes.captions import (
    PLACES,
    draw_expected_absent,
    find_false_places,
    find_place,
    find_unique_object,
    make_scene_rng,
    write_caption,
)
from reverse.data.scenes.object_names import NUMBERS, PAIR_NOUNS, UNCOUNTABLE, make_noun_phrase, make_plural
from reverse.data.scenes.scene import Scene, SceneObject, draw_option
from reverse.data.scenes.scene_questions import make_questions, strip
from reverse.data.scenes.themes import COLOURS, THEMES

__all__ = ["make_amber_questions", "make_haloquest_question", "make_mme_questions", "make_mmhal_question"]

MME_TASKS = ("existence", "count", "position", "color")  # the hallucination subset, by MME's own names
MMHAL_TYPES = (
    "attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other",
)  # fmt: skip
HALOQUEST_TYPES = ("false premise", "visually challenging", "insufficient context")
_UNKNOWABLE = (  # nothing in a picture of this world says it
    "What is the name of the {}?",
    "How old is the {}?",
    "Who owns the {}?",
)
_APART = 0.15  # of the side: less is neither left nor right of something


def make_amber_questions(scene: Scene) -> list[tuple[str, str, str]]:
    """(type, query, "yes" or "no"), with AMBER's names of types: existence, state, number, relation."""
    rng = make_scene_rng(scene, 10)
    there = draw_option(rng, list(scene.truth))
    absent = draw_expected_absent(scene, rng)
    further = draw_expected_absent(scene, rng, {absent})
    asked = [
        ("discriminative-hallucination", _is_there(there), "yes"),
        ("discriminative-hallucination", _is_there(absent), "no"),
        ("discriminative-hallucination", _is_there(further), "no"),
    ]
    asked += [("discriminative-attribute-state", *pair) for pair in _colour(scene, rng)]
    asked += [("discriminative-attribute-number", *pair) for pair in _number(scene, rng) or ()]
    asked += [("discriminative-relation", *pair) for pair in _beside(scene, rng) or ()]
    return asked


def make_mme_questions(scene: Scene) -> list[dict[str, str]]:
    """Two rows about a scene, of one of MME's four tasks by turns: one to be answered Yes, one No."""
    rng = make_scene_rng(scene, 11)
    task = MME_TASKS[scene.index % len(MME_TASKS)]
    make: dict[str, Callable[[], list[tuple[str, str]] | None]] = {
        "count": lambda: _number(scene, rng),
        "position": lambda: _position(scene, rng),
        "color": lambda: _colour(scene, rng),
    }
    pairs = make[task]() if task in make else None
    if pairs is None:  # also where a scene has nothing that could be counted or placed
        task = "existence"
        pairs = [
            (_is_there(draw_option(rng, list(scene.truth))), "yes"),
            (_is_there(draw_expected_absent(scene, rng)), "no"),
        ]
    image = f"{scene.id}.png"
    return [
        {
            "question_id": f"{task}/{image}",
            "image": image,
            "question": question,
            "answer": answer.capitalize(),
            "category": task,
        }
        for question, answer in pairs
    ]


def make_mmhal_question(scene: Scene) -> dict[str, Any]:
    """One open question in the form of MMHal-Bench's template, of its eight types by turns."""
    rng = make_scene_rng(scene, 12)
    kind = MMHAL_TYPES[scene.index % len(MMHAL_TYPES)]
    made = _mmhal(scene, kind, rng)
    if made is None:
        kind, made = "environment", _mmhal(scene, "environment", rng)
    assert made is not None
    question, answer = made
    return {
        "question_type": kind,
        "question_topic": scene.theme,
        "image_id": scene.id,
        "image_src": f"{scene.id}.png",
        "image_content": [make_noun_phrase(name, count) for name, count in scene.truth.items()],
        "question": question,
        "gt_answer": answer,
        "model_answer": "",
    }


def make_haloquest_question(scene: Scene) -> dict[str, Any]:
    """One question in HaloQuest's form, of its three types by turns."""
    rng = make_scene_rng(scene, 13)
    kind = HALOQUEST_TYPES[scene.index % len(HALOQUEST_TYPES)]
    if kind == "false premise":
        question, answer = _false_premise(scene, rng)
    elif kind == "visually challenging":
        question, answer = _counting(scene, rng)
    else:
        name = draw_option(rng, list(scene.truth))
        question = draw_option(rng, _UNKNOWABLE).format(name)
        answer = "The picture does not show that."
    return {
        "question_id": scene.index,
        "image": f"{scene.id}.png",
        "text": question,
        "answer": answer,
        "hallucination_type": kind,
        "image_type": "generated",
    }


def _mmhal(scene: Scene, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    if kind == "attribute":
        return "What colour is the ground?", f"The ground is {scene.ground.colour}."
    if kind == "adversarial":
        return _false_premise(scene, rng)
    if kind == "comparison":
        return _comparison(scene, rng)
    if kind == "counting":
        return _counting(scene, rng)
    if kind == "environment":
        return "What place is this?", f"This is {THEMES[scene.theme].phrase}."
    if kind == "holistic":
        return "Describe this image.", strip(write_caption(scene, rng, prejudice=0).text)
    wanted = {"relation": "place", "other": "open"}[kind]
    found = [question for question in make_questions(scene, rng) if question.kind == wanted]
    return (found[0].question, strip(found[0].answer)) if found else None


def _is_there(name: str) -> str:
    return f"Is there {make_noun_phrase(name)} in the picture?"


def _false_premise(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    name = draw_expected_absent(scene, rng, (*UNCOUNTABLE, *PAIR_NOUNS))
    return f"Where is the {name}?", f"There is no {name} in the picture."


def _counting(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    names = [name for name in scene.truth if name not in UNCOUNTABLE]
    names = names or [draw_expected_absent(scene, rng, UNCOUNTABLE)]
    name = draw_option(rng, names)
    many = f"pairs of {name}" if name in PAIR_NOUNS else make_plural(name)
    number = scene.truth.get(name, 0)
    return f"How many {many} are there?", (NUMBERS[number].capitalize() if number else "None") + "."


def _comparison(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    names = [name for name in scene.truth if name not in (*UNCOUNTABLE, *PAIR_NOUNS)]
    unequal = [(a, b) for a in names for b in names if scene.truth[a] > scene.truth[b]]
    if not unequal:
        return None
    more, fewer = draw_option(rng, unequal)
    first, second = (more, fewer) if rng.random() < 0.5 else (fewer, more)
    question = f"Are there more {make_plural(first)} or more {make_plural(second)}?"
    return question, f"There are more {make_plural(more)}."


def _colour(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    right = scene.ground.colour
    wrong = draw_option(rng, [colour for colour in COLOURS if colour != right])
    return [(f"Is the ground {right}?", "yes"), (f"Is the ground {wrong}?", "no")]


def _number(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]] | None:
    names = [name for name in scene.truth if name not in (*UNCOUNTABLE, *PAIR_NOUNS)]
    if not names:
        return None
    name = draw_option(rng, names)
    right = scene.truth[name]
    wrong = right + 1 if right == 1 or rng.random() < 0.5 else right - 1
    asked = []
    for number, answer in ((right, "yes"), (wrong, "no")):
        noun = name if number == 1 else make_plural(name)
        verb = "Is" if number == 1 else "Are"
        asked.append((f"{verb} there {NUMBERS[number]} {noun} in the picture?", answer))
    return asked


def _position(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]] | None:
    clear = [(thing, place) for thing in _unique(scene) if (place := find_place(scene, thing))]
    if not clear:
        return None
    thing, place = draw_option(rng, clear)
    verb = "Are" if thing.name in PAIR_NOUNS else "Is"
    wrong = draw_option(rng, find_false_places(scene, thing))
    return [
        (f"{verb} the {thing.name} {PLACES[place]}?", "yes"),
        (f"{verb} the {thing.name} {PLACES[wrong]}?", "no"),
    ]


def _beside(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]] | None:
    """Whether one object is left of another, asked both ways, where nobody could disagree."""
    things = _unique(scene)
    pairs = [(a, b) for a in things for b in things if b.x - a.x > _APART * scene.side]
    if not pairs:
        return None
    left, right = draw_option(rng, pairs)
    return [
        (f"{_verb(left)} the {left.name} to the left of the {right.name}?", "yes"),
        (f"{_verb(right)} the {right.name} to the left of the {left.name}?", "no"),
    ]


def _verb(thing: SceneObject) -> str:
    return "Are" if thing.name in PAIR_NOUNS else "Is"


def _unique(scene: Scene) -> list[SceneObject]:
    return [thing for name in scene.truth if (thing := find_unique_object(scene, name)) is not None]
