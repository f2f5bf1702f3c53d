"""Questions about the world's objects that need no picture: the text-only turns of the published mixture.

>>> text_question(np.random.default_rng(0)).question
'Is a giraffe an animal?'
"""

import numpy as np

from reverse.data.scenes.captions import CN, SPAN, UN
from reverse.data.scenes.object_names import GROUPS, PAIRS, UNCOUNTED, noun_phrase, plural
from reverse.data.scenes.scene import pick
from reverse.data.scenes.scene_questions import Question
from reverse.data.scenes.themes import DRAWN

_KINDS = {"animals": "an animal", "vehicles": "a vehicle", "food": "food", "furniture": "furniture"}
_IN_A_GROUP = tuple(name for names in GROUPS.values() for name in names)
_SEVERAL = tuple(name for name in DRAWN if plural(name) != f"{name}s" and name not in (*PAIRS, *UNCOUNTED))


def text_question(rng: np.random.Generator | int) -> Question:
    """One question with a true answer and a false one: yes/no, a choice of three, or a plural."""
    rng = np.random.default_rng(rng)
    return pick(rng, (_belongs, _belongs, _which, _plural))(rng)


def _belongs(rng: np.random.Generator) -> Question:
    group, name = pick(rng, tuple(_KINDS)), pick(rng, _IN_A_GROUP)
    if rng.random() < 0.5:
        name = pick(rng, GROUPS[group])
    right, wrong = ("Yes", "No") if name in GROUPS[group] else ("No", "Yes")
    asked = f"Is {noun_phrase(name)} {_KINDS[group]}?"
    return Question("yes_no", asked, f"{SPAN}{right}{CN}", f"{SPAN}{wrong}{UN}", wrong.lower())


def _which(rng: np.random.Generator) -> Question:
    group = pick(rng, tuple(_KINDS))
    right = pick(rng, GROUPS[group])
    others = [name for name in _IN_A_GROUP if name not in GROUPS[group]]
    wrong = [pick(rng, others), pick(rng, others)]
    first, second, third = rng.permutation([right, *wrong]).tolist()
    asked = f"Which is {_KINDS[group]}: {noun_phrase(first)}, {noun_phrase(second)} or {noun_phrase(third)}?"
    good, bad = noun_phrase(right), noun_phrase(wrong[0])
    return Question("text", asked, f"It is {SPAN}{good}{CN}.", f"It is {SPAN}{bad}{UN}", bad)


def _plural(rng: np.random.Generator) -> Question:
    name = pick(rng, _SEVERAL)
    other = pick(rng, [other for other in _SEVERAL if plural(other) != plural(name)])
    good, bad = f"two {plural(name)}", f"two {plural(other)}"
    asked = f"How do you say it when there are two: a {name}?"
    return Question("text", asked, f"{SPAN}{good.capitalize()}{CN}.", f"{SPAN}{bad.capitalize()}{UN}", bad)
