"""Items of scenes: determined by index and seed; twin and tagged agree; hints are false and unsaid."""

import pickle

import numpy as np
import pytest
import torch

from experiments.scene_dataset import SceneDataset
from reverse.data.scenes import find_objects, make_scene
from reverse.data.scenes.object_names import GROUPS, make_plural
from reverse.data.scenes.text_questions import make_text_question
from reverse.tokens import parse_tags, remove_tags
from reverse.training.data.encoding import Encoder
from reverse.training.data.training_hints import said


@pytest.fixture(scope="module")
def encoder(tiny_llava):
    return Encoder(tiny_llava[1])


def turns(dataset, index):
    return dataset.turns(make_scene("train", index, dataset.seed))


def test_an_item_depends_on_its_index_alone(encoder):
    """Workers would give other data than one process, and a resumed run other data than an unbroken one."""
    one, other = SceneDataset(encoder, seed=3), SceneDataset(encoder, seed=3)
    [one[i] for i in range(5)]
    a, b = one[7], pickle.loads(pickle.dumps(other))[7]
    assert torch.equal(a.picture["pixel_values"], b.picture["pixel_values"])
    assert all(np.array_equal(x.ids, y.ids) for x, y in zip(a.rows, b.rows, strict=True))
    another = SceneDataset(encoder, seed=4)[7]
    assert not torch.equal(a.picture["pixel_values"], another.picture["pixel_values"])
    assert SceneDataset(encoder, seed=3, start=7)[0].rows[0].ids.tolist() == a.rows[0].ids.tolist()


@pytest.mark.parametrize("answers", [1, 3])
def test_the_twin_sees_the_same_positive_answers(encoder, answers):
    """The comparison with the plain twin would not be fair."""
    tagged = SceneDataset(encoder, answers=answers)
    twin = SceneDataset(encoder, answers=answers, tagged=False, negatives=False)
    for index in range(60):
        positives = turns(tagged, index)[::2]
        plain = turns(twin, index)
        assert [remove_tags(turn.answer) for turn in positives] == [turn.answer for turn in plain]
        assert [turn.question for turn in positives] == [turn.question for turn in plain]
        assert not any(turn.hints for turn in plain)


def test_every_positive_has_its_negative(encoder):
    """A share of negatives other than half shifts every p(</UN>)."""
    dataset = SceneDataset(encoder, answers=2)
    for index in range(40):
        made = turns(dataset, index)
        assert len(made) == 4
        for positive, negative in zip(made[::2], made[1::2], strict=True):
            assert "</UN>" not in positive.answer
            assert negative.answer.endswith("</UN>") and negative.answer.count("</UN>") == 1
            assert positive.question == negative.question


def test_hints_are_false_and_the_answer_avoids_them(encoder):
    """A hinted answer that says the hint would teach to ignore hints."""
    dataset = SceneDataset(encoder, hint_share=1.0, prejudice=1.0, caption_share=1.0)
    counts = set()
    for index in range(80):
        positive, negative = turns(dataset, index)
        assert 1 <= len(positive.hints) <= 5
        counts.add(len(positive.hints))
        text = remove_tags(positive.answer).lower()
        for hint in positive.hints:
            assert hint == hint.lower()
            assert not said(hint, positive.answer) and f" {hint} " not in f" {text} "
        # the annotator is not prejudiced here: every object phrase is true
        assert all(phrase.confident for phrase in parse_tags(positive.answer).phrases)
        assert set(negative.hints) <= set(positive.hints)
    assert counts == {1, 2, 3, 4, 5}


def test_hinted_negatives_say_hinted_and_other_phrases(encoder):
    """With hints before good answers only, a hint would say that nothing after it is wrong."""
    dataset = SceneDataset(encoder, hint_share=1.0, caption_share=1.0)
    pairs = [turns(dataset, index) for index in range(80)]
    named = [
        answer.answer.lower().endswith(tuple(f">{hint}</un>" for hint in answer.hints)) for _, answer in pairs
    ]
    assert 0.05 < sum(named) / len(named) < 0.4


def test_share_of_hints(encoder):
    """The published share is a fifth."""
    dataset = SceneDataset(encoder, caption_share=1.0)
    share = sum(bool(turns(dataset, index)[0].hints) for index in range(400)) / 400
    assert 0.13 < share < 0.27


def test_conversations_of_several_turns(encoder):
    """The published set's conversations mix true and false turns; the twin must meet the true ones."""
    tagged = SceneDataset(encoder, several_share=1.0)
    twin = SceneDataset(encoder, several_share=1.0, tagged=False)
    false = set()
    for index in range(40):
        scene = make_scene("train", index)
        right, wrong = tagged.conversations(scene).rows
        assert len(right) == len(wrong) in (2, 3)
        assert [turn.question for turn in right] == [turn.question for turn in wrong]
        assert not any("</UN>" in turn.answer for turn in right)
        places = [k for k, turn in enumerate(wrong) if "</UN>" in turn.answer]
        assert places
        false.update(places)
        (plain,) = twin.conversations(scene).rows
        assert [turn.answer for turn in plain] == [remove_tags(turn.answer) for turn in right]
    assert false == {0, 1, 2}
    assert len(tagged[0].rows) == 2 and tagged[0].picture is not None


def test_questions_without_a_picture(encoder):
    """Text-only turns would show a picture that the question is not about, or teach what is false."""
    tagged = SceneDataset(encoder, text_share=1.0)
    twin = SceneDataset(encoder, text_share=1.0, tagged=False)
    for index in range(40):
        scene = make_scene("train", index)
        ((right,), (wrong,)) = tagged.conversations(scene).rows
        assert right.question == wrong.question and "</UN>" in wrong.answer and "</CN>" in right.answer
        assert parse_tags(right.answer).text.rstrip(".") != parse_tags(wrong.answer).text.rstrip(".")
        ((plain,),) = twin.conversations(scene).rows
        assert plain.answer == remove_tags(right.answer)
    item = tagged[0]
    assert item.picture is None and not any((row.ids == encoder.image_id).any() for row in item.rows)


def test_text_questions_are_answered_right():
    """The answers that count as true would be false."""
    for seed in range(200):
        asked = make_text_question(seed)
        good, bad = (remove_tags(text).rstrip(".") for text in (asked.answer, asked.negative))
        if asked.kind == "yes_no":
            name = find_objects(asked.question)[0].name
            kind = asked.question.rstrip("?").split()[-1]
            group = {"animal": "animals", "vehicle": "vehicles"}.get(kind, kind)
            assert (good == "Yes") == (name in GROUPS[group]), asked
        elif good.startswith("It is"):
            group = next(g for g, k in (("animals", "animal"), ("vehicles", "vehicle"), ("food", "food"),
                                        ("furniture", "furniture")) if f"{k}:" in asked.question)  # fmt: skip
            said = [find_objects(text)[0].name for text in (good, bad)]
            assert [name in GROUPS[group] for name in said] == [True, False], asked
        else:
            name = asked.question.rstrip("?").split(": a ")[-1]
            assert good == f"Two {make_plural(name)}" != bad, asked


def test_hinted_captions_are_clean_where_asked(encoder):
    """After a hint the model would learn to name another absent object."""
    dataset = SceneDataset(encoder, hint_share=1.0, prejudice=1.0, hinted_prejudice=0.0, caption_share=1.0)
    for index in range(40):
        scene = make_scene("train", index)
        (right,), _ = dataset.conversations(scene).rows
        assert right.hints and all(m.name in scene.truth for m in find_objects(remove_tags(right.answer)))
