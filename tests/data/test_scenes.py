"""The scenes world tells the truth: about its pictures, its captions and what it calls false."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reverse.data.records.record_rules import check_shape
from reverse.data.scenes import (
    SPLITS,
    find_objects,
    make_questions,
    make_scene,
    make_scene_records,
    render_scene,
    write_caption,
    write_negative_caption,
)
from reverse.data.scenes.captions import PLACES, PREJUDICE, find_place, find_unique_object
from reverse.data.scenes.object_names import COCO_IDS, NUMBERS, make_noun_phrase
from reverse.data.scenes.scene import MIN_VISIBLE, locate_sprite, make_owner_map
from reverse.data.scenes.sprites import load_atlas
from reverse.data.scenes.themes import OBJECT_NAMES, THEMES

scenes = st.builds(make_scene, st.sampled_from(SPLITS), st.integers(0, 50_000), st.integers(0, 3))
seeds = st.integers(0, 2**32)
few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def strip(text):
    return re.sub(r"</?(?:SPAN|CN|UN)>", "", text)


def phrases(text):
    return re.findall(r"<SPAN>(.*?)</(CN|UN)>", text)


def holds(scene, phrase):
    """Whether a phrase is true of a scene, worked out apart from the code that made it."""
    if phrase.kind == "theme":
        return phrase.name == scene.theme
    if phrase.kind == "place":
        thing = find_unique_object(scene, phrase.object_name)
        return thing is not None and find_place(scene, thing) == phrase.name
    return scene.truth.get(phrase.name, 0) == phrase.count


def test_atlas_draws_every_object_of_the_world():
    """Without it: a theme names an object that cannot be drawn, and some scene in a thousand fails."""
    assert set(OBJECT_NAMES) == set(load_atlas()) and len(load_atlas()) == 67
    assert set(OBJECT_NAMES) <= set(COCO_IDS) and len(COCO_IDS) == 80


@few
@given(scenes)
def test_objects_lie_inside_and_can_be_seen(scene):
    """Without it: the truth names objects that are covered, and a right answer is scored wrong."""
    owner = make_owner_map(scene)
    assert scene.objects
    for i, thing in enumerate(scene.objects):
        sprite, left, top = locate_sprite(thing)
        height, width = sprite.mask.shape
        assert left >= 0 and top >= 0 and left + width <= scene.side and top + height <= scene.side
        assert (owner == i).sum() >= MIN_VISIBLE * sprite.area


@few
@given(scenes)
def test_scene_and_picture_are_pure_functions(scene):
    """Without it: a killed export goes on with other scenes than it began with."""
    again = make_scene(scene.split, scene.index, scene.seed)
    assert again == scene and write_caption(again) == write_caption(scene)
    picture = render_scene(scene)
    assert picture.shape == (112, 112, 3) and picture.dtype == np.uint8
    assert (render_scene(again) == picture).all()


def test_other_process_makes_the_same_scene():
    """Without it: a hash seed or an order of sets makes the data of two workers differ."""
    code = (
        "import hashlib, json; from reverse.data.scenes import *; "
        "scenes = [make_scene(s, i) for s in SPLITS for i in range(5)]; "
        "parts = [render_scene(s).tobytes() + json.dumps(make_scene_records(s)).encode() for s in scenes]; "
        "print(hashlib.sha256(b''.join(parts)).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_scenes_differ_between_splits_and_indices():
    """Without it: the test split repeats training pictures."""
    drawn = {render_scene(make_scene(split, index)).tobytes() for split in SPLITS for index in range(50)}
    assert len(drawn) == 50 * len(SPLITS)


def test_other_sizes_of_picture_draw():
    """Without it: a model with a larger input cannot be trained on scenes."""
    for side in (64, 336, 600):
        scene = make_scene("train", 1, side=side)
        assert render_scene(scene).shape == (side, side, 3) and (make_owner_map(scene) >= 0).any()


@pytest.mark.parametrize("arguments", [("training", 0), ("test", -1), ("test", 0, -1), ("test", 0, 0, 8)])
def test_bad_arguments_are_named(arguments):
    """Without it: a misspelt split is silently another split."""
    with pytest.raises(ValueError, match="got"):
        make_scene(*arguments)


@few
@given(scenes, seeds)
def test_clean_caption_is_true_and_prejudiced_one_errs_once(scene, seed):
    """Without it: the truth that answers are scored against holds the annotator's prejudice."""
    clean = write_caption(scene, np.random.default_rng(seed), prejudice=0)
    assert all(phrase.is_true and holds(scene, phrase) for phrase in clean.phrases)
    prejudiced = write_caption(scene, np.random.default_rng(seed), prejudice=1)
    wrong = [phrase for phrase in prejudiced.phrases if not holds(scene, phrase)]
    assert len(wrong) == 1 and not wrong[0].is_true and wrong[0].name not in scene.truth


@few
@given(scenes, seeds)
def test_caption_names_what_it_says_it_names(scene, seed):
    """Without it: CHAIR misreads captions, and every figure built on it is wrong."""
    told = write_caption(scene, np.random.default_rng(seed))
    read = [(mention.name, mention.count) for mention in find_objects(strip(told.text))]
    assert read == [(p.name, p.count) for p in told.phrases if p.kind == "object"]
    assert [text.lower() for text, _ in phrases(told.text)] == [p.text for p in told.phrases]
    assert 1 <= len(told.sentences) <= 4 and told.text.endswith(".")
    assert len({p.name for p in told.phrases}) == len(told.phrases) or any(
        p.kind == "place" for p in told.phrases
    )


@few
@given(scenes, seeds)
def test_tags_are_well_formed(scene, seed):
    """Without it: the model is taught malformed tags, which decoding masks out."""
    for record in make_scene_records(scene, np.random.default_rng(seed)):
        text = record["conversations"][1]["value"]
        tags = re.findall(r"</?(?:SPAN|CN|UN)>", text)
        false = record["id"].endswith("-neg")
        assert tags[::2] == ["<SPAN>"] * (len(tags) // 2) and len(tags) % 2 == 0 and tags
        assert tags[1::2] == ["</CN>"] * (len(tags) // 2 - false) + ["</UN>"] * false
        assert not re.search(r"<SPAN>\s|\s</", text)
        assert text.endswith("</UN>") == false


@few
@given(scenes, seeds)
def test_negative_is_false_and_keeps_what_stands_before(scene, seed):
    """Without it: the detector learns that true phrases are false."""
    rng = np.random.default_rng(seed)
    told = write_caption(scene, rng)
    for _ in range(5):
        wrong = write_negative_caption(scene, told, rng)
        assert not wrong.phrase.is_true and not holds(scene, wrong.phrase)
        assert phrases(wrong.text)[-1] == (phrases(wrong.text)[-1][0], "UN")
        assert wrong.hint == phrases(wrong.text)[-1][0].lower() == wrong.phrase.text
        before = [text.lower() for text, _ in phrases(wrong.text)[:-1]]
        assert before == [text.lower() for text, _ in phrases(told.text)][: len(before)]


def test_negatives_are_mostly_what_the_theme_expects():
    """Without it: negatives are easy to tell by being out of place, and the detector learns only that."""
    expected = late = 0
    for index in range(400):
        scene = make_scene("train", index)
        told = write_caption(scene)
        wrong = write_negative_caption(scene, told)
        expected += wrong.phrase.name in THEMES[scene.theme].objects
        late += len(phrases(wrong.text)) > len(told.phrases) / 2
    assert 0.5 < expected / 400 < 0.9 and late > 200


def test_prejudice_keeps_its_promised_rate():
    """Without it: the world gets easier or harder unnoticed."""
    wrong = sum(
        any(not p.is_true for p in write_caption(make_scene("train", index)).phrases) for index in range(1000)
    )
    assert abs(wrong - 1000 * PREJUDICE) < 50


@few
@given(scenes, seeds)
def test_questions_are_answered_truly_and_falsely(scene, seed):
    """Without it: yes/no, number and open answers teach errors."""
    asked = make_questions(scene, np.random.default_rng(seed))
    assert {q.kind for q in asked} >= {"yes_no", "count", "ground", "open"}
    for q in asked:
        assert strip(q.answer) != strip(q.negative)
        assert q.hint == phrases(q.negative)[-1][0].lower() and phrases(q.negative)[-1][1] == "UN"
        named = find_objects(q.question)
        if q.kind == "yes_no":
            assert strip(q.answer) == ("Yes" if named[0].name in scene.truth else "No")
        elif q.kind == "count":
            true = scene.truth.get(named[0].name, 0)
            assert strip(q.answer) == ("None" if true == 0 else NUMBERS[true].capitalize())
        elif q.kind == "place" and named[0].name in scene.truth:
            assert PLACES[find_place(scene, find_unique_object(scene, named[0].name))] in q.answer
        elif q.kind == "open":
            for mention in find_objects(strip(q.answer)):
                assert 1 <= mention.count <= scene.truth[mention.name]
            if "on the" not in q.question and "at the" not in q.question:
                assert find_objects(q.hint)[0].name not in scene.truth


def test_yes_and_no_are_balanced():
    """Without it: always saying yes scores above one half."""
    answers = [
        strip(q.answer) for i in range(50) for q in make_questions(make_scene("val", i)) if q.kind == "yes_no"
    ]
    assert answers.count("Yes") == answers.count("No") == 50


@few
@given(scenes, seeds)
def test_records_are_published_records_and_twins_agree(scene, seed):
    """Without it: the plain twin is trained on other answers than the tagged model."""
    tagged = make_scene_records(scene, np.random.default_rng(seed))
    plain = make_scene_records(scene, np.random.default_rng(seed), tagged=False)
    positive = make_scene_records(scene, np.random.default_rng(seed), negatives=False)
    for record in (*tagged, *plain):
        check_shape(record)
    assert [r["id"] for r in tagged[::2]] == [r["id"] for r in plain] == [r["id"] for r in positive]
    assert [r["id"] + "-neg" for r in tagged[::2]] == [r["id"] for r in tagged[1::2]]
    for ours, twin in zip(positive, plain, strict=True):
        assert ours["conversations"][0] == twin["conversations"][0]
        assert strip(ours["conversations"][1]["value"]) == twin["conversations"][1]["value"]
        assert twin["conversations"][1]["hint"] is None and ours["conversations"][1]["hint"]


@given(st.sampled_from(OBJECT_NAMES), st.integers(1, 9))
def test_phrases_are_read_back(name, count):
    """Without it: an irregular plural is never counted."""
    if name == "broccoli":
        count = 1
    phrase = make_noun_phrase(name, count)
    text = f"There is {phrase}."
    (mention,) = find_objects(text)
    assert (mention.name, mention.count, text[mention.start : mention.end]) == (name, count, phrase)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A hot dog and two teddy bears.", [("hot dog", 1), ("teddy bear", 2)]),
        ("The dogs chase the cat.", [("dog", 2), ("cat", 1)]),
        ("There is no dog here, only three pairs of skis.", [("skis", 3)]),
        ("A wine  glass, a glass, a carpet and a scarf.", [("wine glass", 1)]),
        ("Skis and scissors; people and mice.", [("skis", 1), ("scissors", 1), ("person", 2), ("mouse", 2)]),
        ("", []),
    ],
)
def test_find_objects_on_awkward_texts(text, expected):
    """Without it: "hot dog" is a dog, "carpet" a car, and "no dog" a hallucination."""
    assert [(m.name, m.count) for m in find_objects(text)] == expected


def test_shift_sets_objects_on_a_foreign_ground():
    """Without it: the shifted split measures nothing new."""

    def share(split):
        pairs = [
            thing.name in THEMES[scene.theme].objects
            for scene in (make_scene(split, i) for i in range(200))
            for thing in scene.objects
        ]
        return sum(pairs) / len(pairs)

    assert share("test") > 0.75 and share("shift") < 0.4
