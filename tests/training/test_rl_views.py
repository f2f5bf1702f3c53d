"""Rows for DPO, GRPO and the value head from draft records."""

import json

import pytest

from reverse.data.drafts.draft_files import write_drafts
from reverse.data.drafts.draft_links import add_links
from reverse.data.drafts.draft_record import DraftLink, DraftRecord, DraftSegment, GoldAnswer, RecordedDraft
from reverse.data.drafts.formats import FORMATS
from reverse.errors import DataError, RequestError
from reverse.grading import grade
from reverse.training.views.grpo_views import find_pass_rate, read_gold, view_prompts
from reverse.training.views.preference_views import view_preferences
from reverse.training.views.value_views import view_values
from reverse.training.views.view_files import VIEWS, find_view, write_view
from reverse.training.views.view_rows import ViewSettings
from tests.data.drafts.published_items import ITEMS

# Published items with the views that make rows of them.
PUBLISHED = [
    ("r3v", 1, "cot"), ("r3v", 2, "refine"), ("llava-cot", 0, "cot"), ("mulberry", 0, "cot"),
    ("srpo-sft", 0, "reflect"), ("srpo-sft-tarta", 0, "reflect"), ("tabmwp", 0, "cot"), ("vcr", 0, "cot"),
]  # fmt: skip
PHRASE = DraftSegment(start=0, end=5, verdict="wrong")
RECORD = DraftRecord(
    id="q",
    question="How many?",
    images=("1.png", "2.png"),
    gold=GoldAnswer(kind="number", answers=("3",), tolerance=0.05, unit="dogs"),
    drafts=(
        RecordedDraft(text="Three. Answer: 3", verdict="right"),
        RecordedDraft(text="Seven. Answer: 7", verdict="wrong", segments=(PHRASE,)),
        RecordedDraft(text="Hm.", verdict="unknown"),
    ),
)


def test_a_preference_has_the_shape_that_trl_reads():
    """TRL would refuse the rows, or put the pictures in other places than decoding does."""
    (row,) = view_preferences(add_links(RECORD))
    assert row["prompt"] == [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "How many?"}],
        }
    ]
    said = [{"role": "assistant", "content": [{"type": "text", "text": "Three. Answer: 3"}]}]
    assert row["chosen"] == said and row["rejected"][0]["content"][0]["text"] == "Seven. Answer: 7"
    assert row["images"] == ["1.png", "2.png"]


def test_preferences_without_links_are_asked_for():
    """Pairs would be trained that nobody chose."""
    assert view_preferences(RECORD) == []
    assert len(view_preferences(RECORD, linked=False)) == 1
    assert view_preferences(RECORD, linked=False, with_right_steps=True) == []
    assert view_preferences(add_links(RECORD), with_right_steps=True) == []
    same = RECORD.model_copy(update={"links": (DraftLink(kind="prefer", drafts=(0, 0)),)})
    assert view_preferences(same) == []


def test_tags_of_a_pair_are_all_confident():
    """DPO would unlearn to mark what is wrong."""
    (row,) = view_preferences(add_links(RECORD), tagged=True)
    assert row["rejected"][0]["content"][0]["text"] == "<SPAN>Seven</CN>. Answer: 7"


def test_a_prompt_carries_its_answer_key():
    """A reward could not grade what is sampled."""
    (row,) = view_prompts(RECORD, system="Think.")
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert read_gold(row) == RECORD.gold
    assert grade("Answer: 3.1", read_gold(row).key()).verdict == "right"
    assert view_prompts(RECORD.model_copy(update={"gold": None})) == []


def test_prompts_outside_of_the_band_are_left_out():
    """Groups of equal rewards would cost rollouts and teach nothing."""
    assert find_pass_rate(RECORD) == 0.5
    assert view_prompts(RECORD, band=(0.1, 0.9)) and not view_prompts(RECORD, band=(0.6, 0.9))
    solved = RECORD.model_copy(update={"drafts": RECORD.drafts[:1] * 4})
    assert not view_prompts(solved, band=(0.1, 0.9))
    assert view_prompts(RECORD.model_copy(update={"drafts": ()}), band=(0.1, 0.9))
    with pytest.raises(RequestError, match=r"band must be two shares .*got \(0.9, 0.1\)"):
        view_prompts(RECORD, band=(0.9, 0.1))


def test_values_are_rows_of_prefixes():
    """The value head would learn from answers that nothing is known of, or from one text with two values."""
    rows = view_values(RECORD)
    assert [(row["prefix"], row["value"]) for row in rows] == [
        ("Three.", 0.5), ("Three. Answer: 3", 1.0), ("Seven.", 0.0), ("Seven. Answer: 7", 0.0),
    ]  # fmt: skip
    assert rows[0]["prompt"][0]["content"][-1]["text"] == "How many?" and rows[0]["images"]
    assert view_values(RECORD.model_copy(update={"drafts": RECORD.drafts[1:]})) == []
    high = RecordedDraft(text="Three", role="prefix", value=1.5)
    with pytest.raises(DataError, match=r"'q' has the value 1.5: values lie between 0 and 1"):
        view_values(RECORD.model_copy(update={"drafts": (high,)}))


@pytest.mark.parametrize(("name", "number", "view"), PUBLISHED)
def test_published_items_give_training_rows(name, number, view):
    """What was imported could be exported, but not trained on here."""
    record = FORMATS[name].parse(ITEMS[name][number])
    made = VIEWS[view](record, ViewSettings())
    assert made.rows and not made.left_out
    assert "<think>" not in record.drafts[0].text and record.images[0] == made.rows[0]["image"]


def test_beam_files_of_tsst_give_rows_of_every_kind():
    """The chains that one system sampled would teach only that system's tasks."""
    record = add_links(FORMATS["tsst-beam"].parse(ITEMS["tsst-beam"][0]))
    assert VIEWS["refine"](record, ViewSettings()).rows and VIEWS["self_correct"](record, ViewSettings()).rows
    assert view_preferences(record) and view_prompts(record) and len(view_values(record)) == 3


@pytest.mark.parametrize(("kind", "rows"), [("dpo", 1), ("grpo", 2), ("value", 4)])
def test_rows_are_written_like_those_of_other_views(kind, rows, tmp_path):
    """`reverse data view --as dpo` would not know the view, or would not say what it left out."""
    lone = RECORD.model_copy(update={"id": "lone", "drafts": ()})
    write_drafts(tmp_path / "d.jsonl", [RECORD, lone])
    manifest = write_view(tmp_path / "d.jsonl", tmp_path / "r.jsonl", kind)
    written = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(written) == manifest["rows"] == rows
    assert all(row["prompt"] and row["images"] for row in written)
    assert sum(manifest["left_out"].values()) == (0 if kind == "grpo" else 1)


def test_a_question_has_no_more_rows_than_it_may():
    """A question with many answers would outweigh the others in the value head."""
    made = find_view("value")(RECORD, ViewSettings(per_question=2))
    assert len(made.rows) == 2 and made.left_out["beyond the most rows of a question"] == 2
