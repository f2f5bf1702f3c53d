"""A captioner that learns to judge its own captions: labels, rows, and a run."""

import pytest

from experiments.caption_judge import JudgeRecipe, label_caption, teach
from reverse.data.scenes import make_scene, write_caption
from reverse.data.scenes.object_names import make_noun_phrase
from reverse.data.scenes.themes import OBJECT_NAMES
from reverse.models import load
from reverse.tokens.spans import parse_tags, remove_tags


def test_labels_are_the_truth():
    """The model would learn to doubt what is there, or to trust what is not."""
    scene = make_scene("test", 5)
    there = next(iter(scene.truth))
    absent = next(name for name in OBJECT_NAMES if name not in scene.truth)
    named = [make_noun_phrase(name) for name in (there, absent)]
    told = f"There is <SPAN>{named[0]}</CN> and <SPAN>{named[1]}</CN>, <SPAN>so</UN>."
    text, wrong = label_caption(scene, told)
    assert remove_tags(text) == remove_tags(told)
    assert [phrase.confident for phrase in parse_tags(text).phrases] == [True, False, True]
    assert wrong == [named[1]]


def test_a_true_caption_has_no_wrong_phrase():
    """The model would learn to doubt objects that are in the picture."""
    for index in range(20):
        scene = make_scene("val", index)
        caption = write_caption(scene, prejudice=0.0).text
        assert label_caption(scene, caption)[1] == []


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_a_run_writes_a_model(name, tmp_path):
    """Minutes on a GPU would end in an error."""
    out = tmp_path / "judge"
    recipe = JudgeRecipe(name, str(out), pictures=3, samples=1, steps=2, judge_rows=2, replay_rows=2)
    manifest = teach(recipe, lambda line: None)
    assert manifest["steps"] == 2 and manifest["recipe"]["model"] == name
    model, processor = load(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge"]
    assert len(processor.tokenizer) == model.get_input_embeddings().num_embeddings
