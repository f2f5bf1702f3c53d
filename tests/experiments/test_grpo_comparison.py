"""GRPO with and without a reward for reflecting: what is asked, and what is made of the answers."""

import pytest

from experiments.grpo_comparison import GRPOSettings, compute_claims, main, write_rows
from experiments.reasoning.reasoning_recipe import REFLECTION
from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer, RecordedCost, RecordedDraft
from reverse.files.text_reading import read_json, read_json_lines


def make_records(verdicts, *, reflects):
    """One record for each (first, last) verdict."""
    records = []
    for number, (first, last) in enumerate(verdicts):
        drafts = [RecordedDraft(text="1", role="reflect", verdict=last, accepted=True)]
        if reflects:
            drafts.insert(0, RecordedDraft(text="2", role="first", verdict=first))
        records.append(
            DraftRecord(
                id=str(number),
                question="How many?",
                images=(str(number),),
                gold=GoldAnswer(kind="number", answers=("1",)),
                drafts=tuple(drafts),
                cost=RecordedCost(mode="reflect", tokens=10, seconds=1.0),
            )
        )
    return records


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
    """A model that breaks right answers would seem to mend wrong ones."""
    right, wrong = "right", "wrong"
    before = [(right, wrong), (right, right), (wrong, right), (wrong, wrong)]
    after = [(right, right), (right, right), (wrong, right), (wrong, wrong)]
    single = make_records([(None, right), (None, right), (None, wrong), (None, wrong)], reflects=False)
    found = compute_claims(
        {
            "start": {"plain": single, "reflect": make_records(before, reflects=True)},
            "reflection": {"plain": single, "reflect": make_records(after, reflects=True)},
            "plain": {"plain": single},
        }
    )
    assert found["start_break_rate"][0] == 0.25 and found["break_rate_after_grpo"][0] == 0
    assert found["start_fix_rate"][0] == found["reflection_fix_rate"][0] == 0.25
    assert found["grpo_reflection_over_plain"][0] == 0.25 and found["plain_grpo_gain"][0] == 0


def test_a_run_trains_and_measures(tmp_path):
    """Minutes of training would end in an error."""
    pytest.importorskip("trl")
    main(["--smoke", "--out", str(tmp_path)])
    found = read_json(tmp_path / "grpo.json")
    assert {"reflection", "plain"} == set(found["trained"])
    assert found["trained"]["reflection"]["log"] and "grpo_reflection_over_plain" in found["claims"]
