"""Benchmark questions about one scene with their true answers: rows of AMBER, MME, MMHal and HaloQuest.

    >>> [row["answer"] for row in make_mme_questions(make_scene("test", 1))]
    ['Yes', 'No']

The result of every function depends on its scene alone.
"""

from typing import Any

import numpy as np

from reverse.data.scenes.captions import (
    PLACES,
    draw_expected_absent,
    find_false_places,
    find_unique_object,
    make_scene_rng,
    write_caption,
)
from reverse.data.scenes.object_names import NUMBERS, PAIR_NOUNS, UNCOUNTABLE, make_noun_phrase, make_plural
from reverse.data.scenes.scene import Scene, draw_option, draw_other_option
from reverse.data.scenes.scene_questions import (
    ask_number,
    ask_presence,
    choose_verb,
    find_clear_places,
    make_questions,
    write_number,
)
from reverse.data.scenes.themes import COLOURS, THEMES
from reverse.tokens.spans import remove_tags

MME_TASKS = ("existence", "count", "position", "color")  # the hallucination subset, by MME's own names
MMHAL_TYPES = (
    "attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other",
)  # fmt: skip
HALOQUEST_TYPES = ("false premise", "visually challenging", "insufficient context")
_UNKNOWABLE = (  # no picture of this world answers them
    "What is the name of the {}?",
    "How old is the {}?",
    "Who owns the {}?",
)
_NOT_COUNTED = (*UNCOUNTABLE, *PAIR_NOUNS)
_MIN_DISTANCE = 0.15  # of the side: objects closer than this are neither left nor right of each other

Pairs = list[tuple[str, str]]  # questions with "yes" or "no"


def make_amber_questions(scene: Scene) -> list[tuple[str, str, str]]:
    """Make rows (type, query, "yes" or "no") with AMBER's types: existence, state, number, relation."""
    rng = make_scene_rng(scene, 10)
    present = draw_option(rng, list(scene.truth))
    absent = draw_expected_absent(scene, rng)
    further = draw_expected_absent(scene, rng, {absent})
    existence = [(ask_presence(present), "yes"), (ask_presence(absent), "no"), (ask_presence(further), "no")]
    types = {
        "hallucination": existence,
        "attribute-state": _ask_colour(scene, rng),
        "attribute-number": _ask_count(scene, rng),
        "relation": _ask_relation(scene, rng),
    }
    return [(f"discriminative-{kind}", *pair) for kind, pairs in types.items() for pair in pairs]


def make_mme_questions(scene: Scene) -> list[dict[str, str]]:
    """Make two rows, answered Yes and No; the scene's index chooses one of MME's four tasks."""
    rng = make_scene_rng(scene, 11)
    task = MME_TASKS[scene.index % len(MME_TASKS)]
    make = {"count": _ask_count, "position": _ask_position, "color": _ask_colour}.get(task)
    pairs = make(scene, rng) if make else []
    if not pairs:  # also if a scene has nothing that could be counted or placed
        task = "existence"
        pairs = [
            (ask_presence(draw_option(rng, list(scene.truth))), "yes"),
            (ask_presence(draw_expected_absent(scene, rng)), "no"),
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
    """Make one open question in MMHal-Bench's form; the scene's index chooses one of its eight types."""
    rng = make_scene_rng(scene, 12)
    kind = MMHAL_TYPES[scene.index % len(MMHAL_TYPES)]
    made = _ask_mmhal(scene, kind, rng)
    if made is None:
        kind, made = "environment", _ask_mmhal(scene, "environment", rng)
    assert made is not None
    return {
        "question_type": kind,
        "question_topic": scene.theme,
        "image_id": scene.id,
        "image_src": f"{scene.id}.png",
        "image_content": [make_noun_phrase(name, count) for name, count in scene.truth.items()],
        "question": made[0],
        "gt_answer": made[1],
        "model_answer": "",
    }


def make_haloquest_question(scene: Scene) -> dict[str, Any]:
    """Make one question in HaloQuest's form; the scene's index chooses one of its three types."""
    rng = make_scene_rng(scene, 13)
    kind = HALOQUEST_TYPES[scene.index % len(HALOQUEST_TYPES)]
    if kind == "false premise":
        question, answer = _ask_false_premise(scene, rng)
    elif kind == "visually challenging":
        question, answer = _ask_number(scene, rng)
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


def _ask_mmhal(scene: Scene, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    if kind == "attribute":
        return "What colour is the ground?", f"The ground is {scene.ground.colour}."
    if kind == "adversarial":
        return _ask_false_premise(scene, rng)
    if kind == "comparison":
        return _ask_comparison(scene, rng)
    if kind == "counting":
        return _ask_number(scene, rng)
    if kind == "environment":
        return "What place is this?", f"This is {THEMES[scene.theme].phrase}."
    if kind == "holistic":
        return "Describe this image.", remove_tags(write_caption(scene, rng, prejudice=0).text)
    wanted = {"relation": "place", "other": "open"}[kind]
    found = [made for made in make_questions(scene, rng) if made.kind == wanted]
    return (found[0].question, remove_tags(found[0].answer)) if found else None


def _ask_false_premise(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    name = draw_expected_absent(scene, rng, _NOT_COUNTED)
    return f"Where is the {name}?", f"There is no {name} in the picture."


def _ask_number(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    names = [name for name in scene.truth if name not in UNCOUNTABLE]
    name = draw_option(rng, names or [draw_expected_absent(scene, rng, UNCOUNTABLE)])
    return ask_number(name), write_number(scene.truth.get(name, 0)) + "."


def _ask_comparison(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    names = [name for name in scene.truth if name not in _NOT_COUNTED]
    unequal = [(a, b) for a in names for b in names if scene.truth[a] > scene.truth[b]]
    if not unequal:
        return None
    more, fewer = draw_option(rng, unequal)
    first, second = (more, fewer) if rng.random() < 0.5 else (fewer, more)
    question = f"Are there more {make_plural(first)} or more {make_plural(second)}?"
    return question, f"There are more {make_plural(more)}."


def _ask_colour(scene: Scene, rng: np.random.Generator) -> Pairs:
    true = scene.ground.colour
    false = draw_other_option(rng, COLOURS, true)
    return [(f"Is the ground {true}?", "yes"), (f"Is the ground {false}?", "no")]


def _ask_count(scene: Scene, rng: np.random.Generator) -> Pairs:
    names = [name for name in scene.truth if name not in _NOT_COUNTED]
    if not names:
        return []
    name = draw_option(rng, names)
    true = scene.truth[name]
    false = true + 1 if true == 1 or rng.random() < 0.5 else true - 1
    return [
        (f"Is there one {name} in the picture?", answer)
        if number == 1
        else (f"Are there {NUMBERS[number]} {make_plural(name)} in the picture?", answer)
        for number, answer in ((true, "yes"), (false, "no"))
    ]


def _ask_position(scene: Scene, rng: np.random.Generator) -> Pairs:
    clear = find_clear_places(scene)
    if not clear:
        return []
    thing, place = draw_option(rng, clear)
    false = draw_option(rng, find_false_places(scene, thing))
    start = f"{choose_verb(thing.name).capitalize()} the {thing.name}"
    return [(f"{start} {PLACES[place]}?", "yes"), (f"{start} {PLACES[false]}?", "no")]


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Pairs:
    """Make two rows that ask which of two objects is on the left, if their places are unmistakable."""
    things = [thing for name in scene.truth if (thing := find_unique_object(scene, name))]
    pairs = [(a.name, b.name) for a in things for b in things if b.x - a.x > _MIN_DISTANCE * scene.side]
    if not pairs:
        return []
    left, right = draw_option(rng, pairs)
    return [
        (f"{choose_verb(one).capitalize()} the {one} to the left of the {other}?", answer)
        for one, other, answer in ((left, right, "yes"), (right, left, "no"))
    ]
