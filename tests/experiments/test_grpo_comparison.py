"""GRPO with and without a reward for reflecting: what is asked, and what is made of the answers."""

import pytest

from experiments.grpo_comparison import GRPOSettings, compute_claims, main, make_turn_record, write_rows
from experiments.reasoning.reasoning_measures import ask_questions
from experiments.reasoning.reasoning_recipe import REFLECTION
from reverse.data.drafts.draft_files import read_drafts
from reverse.decoding.result import Usage
from reverse.files.text_reading import read_json, read_json_lines

QUESTION = next(each.question for each in ask_questions("val", 30) if each.question.gold.kind == "number")


def write_turn(first, last):
    """A turn in the grammar whose answers are right or not."""
    said = {True: QUESTION.answer, False: "99"}
    return (
        f"<think>a</think><answer>{said[first]}</answer><reflection>b</reflection><think>c</think>"
        f"<answer>{said[last]}</answer>"
    )


def make_records(turns, mode):
    records = [make_turn_record(QUESTION, text, mode, Usage(10, 0, 10, 1.0)) for text in turns]
    return [
        each.model_copy(update={"id": str(number), "images": (str(number),)})
        for number, each in enumerate(records)
    ]


def test_both_runs_ask_the_same_questions(tmp_path):
    """One run would be trained on other questions than the run that it is compared with."""
    write_rows(GRPOSettings(steps=2, questions=2), tmp_path)
    reflection, plain = (
        [row for _, row in read_json_lines(tmp_path / f"{name}.jsonl")] for name in ("reflection", "plain")
    )
    assert [row["id"] for row in reflection] == [row["id"] for row in plain] and len(plain) == 4
    for asked, other in zip(reflection, plain, strict=True):
        assert REFLECTION in str(asked["prompt"]) and REFLECTION not in str(other["prompt"])
        assert asked["answers"] == other["answers"]
        assert (tmp_path / asked["images"][0]).is_file()


def test_claims_count_what_reflections_mend_and_break():
    """A model that breaks right answers would seem to mend wrong ones, or none at all."""
    before = [
        write_turn(True, False),
        write_turn(True, True),
        write_turn(False, True),
        write_turn(False, False),
    ]
    after = [
        write_turn(True, True),
        write_turn(True, True),
        write_turn(False, True),
        write_turn(False, False),
    ]
    single = {name: [f"Answer: {QUESTION.answer}"] * n + ["Answer: 99"] * (4 - n) for name, n in
              (("start", 2), ("plain", 1), ("reflection", 4))}  # fmt: skip
    found = compute_claims(
        {
            "start": {
                "plain": make_records(single["start"], "plain"),
                "reflect": make_records(before, "reflect"),
            },
            "reflection": {
                "plain": make_records(single["reflection"], "plain"),
                "reflect": make_records(after, "reflect"),
            },
            "plain": {"plain": make_records(single["plain"], "plain")},
        }
    )
    assert found["start_reflect_first_accuracy"][0] == 0.5 and found["start_reflect_accuracy"][0] == 0.5
    assert found["start_break_rate"][0] == 0.25 and found["break_rate_after_grpo"][0] == 0
    assert found["start_fix_rate"][0] == found["reflection_fix_rate"][0] == 0.25
    assert found["grpo_reflection_gain"][0] == 0.25 and found["grpo_reflection_over_start"][0] == 0.25
    assert found["grpo_reflection_over_plain"][0] == 0.5 and found["grpo_plain_gain"][0] == -0.25
    assert found["reflection_accuracy"][0] == 1 and found["plain_tokens"][0] == 10


def test_a_run_trains_and_measures(tmp_path):
    """Minutes of training would end in an error."""
    pytest.importorskip("trl")
    main(["--smoke", "--out", str(tmp_path)])
    found = read_json(tmp_path / "grpo.json")
    assert {"reflection", "plain"} == set(found["trained"])
    assert found["trained"]["reflection"]["log"] and "grpo_reflection_over_plain" in found["claims"]
    (path,) = tmp_path.glob("measure-*/reflection/reflect.jsonl")
    assert [[draft.role for draft in each.drafts] for each in read_drafts(path)] == [
        ["first", "reflection"]
    ] * 3
