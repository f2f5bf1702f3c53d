"""Questions about the world's objects that need no picture: the text-only turns of the published mixture.

>>> text_question(np.random.default_rng(0)).question
'Is a giraffe an animal?'
"""

import numpy as np

from reverse.data.scenes.captions import CN, SPAN, UN
from reverse.data.scenes.object_names import GROUPS, PAIR_NOUNS, UNCOUNTABLE, make_noun_phrase, make_plural
from reverse.data.scenes.scene import draw_option
from reverse.data.scenes.scene_questions import SceneQuestion
from reverse.data.scenes.themes import OBJECT_NAMES

_KINDS = {"animals": "an animal", "vehicles": "a vehicle", "food": "food", "furniture": "furniture"}
_IN_A_GROUP = tuple(name for names in GROUPS.values() for name in names)
_SEVERAL = tuple(
    name
    for name in OBJECT_NAMES
    if make_plural(name) != f"{name}s" and name not in (*PAIR_NOUNS, *UNCOUNTABLE)
)


def make_text_question(rng: np.random.Generator | int) -> SceneQuestion:
    """One question with a true answer and a false one: yes/no, a choice of three, or a plural."""
    rng = np.random.default_rng(rng)
    return draw_option(rng, (_belongs, _belongs, _which, _plural))(rng)


def _belongs(rng: np.random.Generator) -> SceneQuestion:
    group, name = draw_option(rng, tuple(_KINDS)), draw_option(rng, _IN_A_GROUP)
    if rng.random() < 0.5:
        name = draw_option(rng, GROUPS[group])
    right, wrong = ("Yes", "No") if name in GROUPS[group] else ("No", "Yes")
    asked = f"Is {make_noun_phrase(name)} {_KINDS[group]}?"
    return SceneQuestion("yes_no", asked, f"{SPAN}{right}{CN}", f"{SPAN}{wrong}{UN}", wrong.lower())


def _which(rng: np.random.Generator) -> SceneQuestion:
    group = draw_option(rng, tuple(_KINDS))
    right = draw_option(rng, GROUPS[group])
    others = [name for name in _IN_A_GROUP if name not in GROUPS[group]]
    wrong = [draw_option(rng, others), draw_option(rng, others)]
    first, second, third = rng.permutation([right, *wrong]).tolist()
    options = "{}, {} or {}".format(*map(make_noun_phrase, (first, second, third)))
    asked = f"Which is {_KINDS[group]}: {options}?"
    good, bad = make_noun_phrase(right), make_noun_phrase(wrong[0])
    return SceneQuestion("text", asked, f"It is {SPAN}{good}{CN}.", f"It is {SPAN}{bad}{UN}", bad)


def _plural(rng: np.random.Generator) -> SceneQuestion:
    name = draw_option(rng, _SEVERAL)
    other = draw_option(rng, [other for other in _SEVERAL if make_plural(other) != make_plural(name)])
    good, bad = f"two {make_plural(name)}", f"two {make_plural(other)}"
    asked = f"How do you say it when there are two: a {name}?"
    return SceneQuestion(
        "text", asked, f"{SPAN}{good.capitalize()}{CN}.", f"{SPAN}{bad.capitalize()}{UN}", bad
    )
