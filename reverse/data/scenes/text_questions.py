"""Questions about the world's objects that need no picture: the text-only turns of the published mixture.

>>> make_text_question(0).question
'Is a giraffe an animal?'
"""

import numpy as np

from reverse.data.scenes.object_names import GROUPS, PAIR_NOUNS, UNCOUNTABLE, make_noun_phrase, make_plural
from reverse.data.scenes.scene import draw_option
from reverse.data.scenes.scene_questions import SceneQuestion, fill_answer
from reverse.data.scenes.themes import OBJECT_NAMES

_KINDS = {"animals": "an animal", "vehicles": "a vehicle", "food": "food", "furniture": "furniture"}
_GROUP_MEMBERS = tuple(name for names in GROUPS.values() for name in names)
_IRREGULAR = tuple(
    name
    for name in OBJECT_NAMES
    if make_plural(name) != f"{name}s" and name not in (*PAIR_NOUNS, *UNCOUNTABLE)
)


def make_text_question(rng: np.random.Generator | int) -> SceneQuestion:
    """Make one question with a true and a false answer: yes/no, a choice of three, or a plural."""
    rng = np.random.default_rng(rng)
    return draw_option(rng, (_ask_membership, _ask_membership, _ask_member, _ask_plural))(rng)


def _ask_membership(rng: np.random.Generator) -> SceneQuestion:
    group, name = draw_option(rng, tuple(_KINDS)), draw_option(rng, _GROUP_MEMBERS)
    if rng.random() < 0.5:
        name = draw_option(rng, GROUPS[group])
    answers = ("Yes", "No") if name in GROUPS[group] else ("No", "Yes")
    return fill_answer("yes_no", f"Is {make_noun_phrase(name)} {_KINDS[group]}?", "{}", *answers)


def _ask_member(rng: np.random.Generator) -> SceneQuestion:
    group = draw_option(rng, tuple(_KINDS))
    true = draw_option(rng, GROUPS[group])
    others = [name for name in _GROUP_MEMBERS if name not in GROUPS[group]]
    false = [draw_option(rng, others), draw_option(rng, others)]
    options = map(make_noun_phrase, rng.permutation([true, *false]).tolist())
    question = f"Which is {_KINDS[group]}: {{}}, {{}} or {{}}?".format(*options)
    return fill_answer("text", question, "It is {}.", make_noun_phrase(true), make_noun_phrase(false[0]))


def _ask_plural(rng: np.random.Generator) -> SceneQuestion:
    name = draw_option(rng, _IRREGULAR)
    other = draw_option(rng, [other for other in _IRREGULAR if make_plural(other) != make_plural(name)])
    answers = (f"Two {make_plural(name)}", f"Two {make_plural(other)}")
    return fill_answer("text", f"How do you say it when there are two: a {name}?", "{}.", *answers)
