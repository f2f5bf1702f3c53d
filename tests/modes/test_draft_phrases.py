"""The phrases of a draft, also of one that is a part of the turn."""

from reverse.modes import Reflect, Select
from tests.modes.driving import Say, script

TARTA = "<think>one</think><answer>3</answer><reflection>no</reflection><think>two</think><answer>4</answer>"


def test_phrases_lie_where_the_draft_says():
    """p(</UN>) of a step would be read at another place, or of another draft."""
    result = script(Say("a dog", 0.25)).run(Select(n=2)).result
    for draft in result.drafts:
        (phrase,) = draft.phrases
        assert draft.text[phrase.start : phrase.end] == phrase.text == "a dog" and phrase.p_un == 0.75


def test_a_part_of_a_turn_has_the_phrases_inside_of_it():
    """The answer of a reflection would carry the phrases of its reasoning, behind its own end."""
    result = script(Say(TARTA)).run(Reflect()).result
    (draft,) = result.drafts
    assert draft.text.strip() == "4" and draft.phrases == ()
