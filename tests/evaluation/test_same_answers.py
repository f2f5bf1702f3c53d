"""The record of reference answers: what counts as the same, and what a stopped recording leaves."""

from __future__ import annotations

from copy import deepcopy

from benchmarks.same_answers import (
    append_member,
    compare_answers,
    list_differences,
    list_settings,
    read_members,
)

ANSWER = {
    "ids": [5, 7, 9],
    "finish_reason": "eos",
    "resolved": True,
    "phrases": [{"text": "a dog", "start": 0, "end": 5, "p_un": 0.25, "status": "accepted"}],
    "trace": [{"kind": "rejected", "phrase": "a cat", "p_un": 0.5, "at": 0, "rewound_to": 0}],
}


def test_every_difference_counts():
    """A comparison that overlooks a part would call a changed engine the same."""
    same = compare_answers([ANSWER], [deepcopy(ANSWER)])
    assert same.is_equal(0.0)
    for part, value in (("ids", [5, 7]), ("finish_reason", "length"), ("resolved", None), ("phrases", [])):
        changed = deepcopy(ANSWER) | {part: value}
        assert not compare_answers([ANSWER], [changed]).is_equal(1.0), part
        assert next(iter(list_differences([ANSWER], [changed]))).startswith(f"scene 0: {part}")
    moved = deepcopy(ANSWER)
    moved["trace"][0]["rewound_to"] = 1
    assert not compare_answers([ANSWER], [moved]).is_equal(1.0)


def test_difference_of_p_is_measured():
    """Probabilities that drift would stay unseen when ids and traces are equal."""
    changed = deepcopy(ANSWER)
    changed["trace"][0]["p_un"] = 0.625
    found = compare_answers([ANSWER], [changed])
    assert (found.same_traces, found.p_difference) == (1, 0.125)
    changed["phrases"][0]["p_un"] = None
    assert compare_answers([ANSWER], [changed]).p_difference == 1.0


def test_torn_member_is_left_out(tmp_path):
    """A recording that was killed while it wrote could not be read, or would go on behind half a setting."""
    path = tmp_path / "reference.jsonl.gz"
    assert read_members(path) == ([], 0)
    append_member(path, {"answers": [1]})
    whole = path.stat().st_size
    append_member(path, {"answers": [2]})
    assert [each["answers"] for each in read_members(path)[0]] == [[1], [2]]
    path.write_bytes(path.read_bytes()[:-3])
    assert read_members(path) == ([{"answers": [1]}], whole)


def test_settings_are_all_combinations():
    """A combination left out would let a change of just that one pass."""
    names = {setting.name for setting in list_settings()}
    assert len(names) == 48
    assert len(list_settings("tiny-qwen commit=answer")) == 8
