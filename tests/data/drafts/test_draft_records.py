"""Draft records and files: what is written is read back, and what is wrong is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverse.data.drafts.draft_files import DraftIndex, draft_line, read_drafts, write_drafts
from reverse.data.drafts.draft_record import (
    DraftLink,
    DraftRecord,
    DraftSegment,
    GoldAnswer,
    RecordedDraft,
    RecordedSampling,
    parse_draft_record,
    tag_segments,
)
from reverse.errors import DataError
from reverse.tokens.spans import remove_tags

TEXT = "Step 1: there are 3 dogs. Answer: 3"
WRONG = DraftSegment(start=17, end=24, verdict="wrong", error="count")


def make_record(name: str = "q1", **changes: object) -> DraftRecord:
    drafts = (
        RecordedDraft(text=TEXT, segments=(WRONG,), answer="3", verdict="wrong", judged_by="grading"),
        RecordedDraft(text="Answer: 2", parent=0, role="correction", sampling=RecordedSampling(seed=1)),
    )
    values = {
        "id": name,
        "question": "How many dogs?",
        "images": ("a.png",),
        "gold": GoldAnswer(kind="number", answers=("2",)),
        "drafts": drafts,
        "links": (DraftLink(kind="refine", drafts=(0, 1)),),
        "source": {"split": "train"},
    }
    return DraftRecord.model_validate(values | changes)


def test_files_give_back_what_was_written(tmp_path):
    """A key would be lost between two stages of self-training."""
    records = [make_record("q1"), make_record("ü2", drafts=(), links=(), gold=None)]
    assert write_drafts(tmp_path / "d.jsonl", records) == 2
    assert list(read_drafts(tmp_path / "d.jsonl")) == records


def test_an_index_finds_records_by_id(tmp_path):
    """A view would have to read the whole file for one record."""
    write_drafts(tmp_path / "d.jsonl", [make_record(f"q{i}") for i in range(50)])
    index = DraftIndex(tmp_path / "d.jsonl")
    assert len(index) == 50
    assert index["q37"] == make_record("q37")
    assert "q50" not in index
    index.close()


def test_an_id_that_stands_twice_is_refused(tmp_path):
    """One of two records would be taken without a word."""
    write_drafts(tmp_path / "d.jsonl", [make_record(), make_record()])
    with pytest.raises(DataError, match="lines 1 and 2: the id 'q1' stands twice"):
        DraftIndex(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 is not 1"),
        ({"colour": 1}, "colour"),
        ({"id": ""}, "id"),
        ({"gold": {"kind": "smell", "answers": ["2"]}}, "gold.kind"),
        ({"drafts": [{"text": "a", "parent": 0}]}, "draft 0 has parent 0"),
        ({"drafts": [{"text": "a", "verdict": "maybe"}]}, "drafts.0.verdict"),
        ({"drafts": [{"text": "a", "confidence": 2}]}, "drafts.0.confidence"),
        ({"drafts": [{"text": "a", "segments": [{"start": 0, "end": 2}]}]}, r"\[0, 2\) of 1 characters"),
        (
            {"drafts": [{"text": "abc", "segments": [{"start": 0, "end": 2}, {"start": 1, "end": 3}]}]},
            "overlap at character 1",
        ),
        ({"links": [{"kind": "refine", "drafts": [0, 7]}]}, "names draft 7 of 2"),
    ],
)
def test_a_bad_record_is_refused_by_name(change, message):
    """A bad line would train nonsense, or fail without saying where it stands."""
    value = json.loads(draft_line(make_record())) | change
    with pytest.raises(DataError, match=f"file, line 3: .*{message}"):
        parse_draft_record(value, "file, line 3")


@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=8), st.booleans())
def test_tags_add_nothing_but_tags(text, cuts, confident):
    """Training would change the words of a draft."""
    text = text.replace("<", "(")
    cuts = sorted(cut for cut in cuts if cut <= len(text))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    segments = tuple(DraftSegment(start=a, end=b, verdict="wrong") for a, b in pairs)
    assert remove_tags(tag_segments(text, segments, all_confident=confident)) == text


def test_a_wrong_phrase_closes_with_un():
    """The model would learn to trust what is wrong."""
    assert tag_segments(TEXT, (WRONG,)) == "Step 1: there are<SPAN> 3 dogs</UN>. Answer: 3"
    assert tag_segments(TEXT, (WRONG,), all_confident=True).count("</CN>") == 1
