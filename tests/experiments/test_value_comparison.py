"""A value head against the confidence of tags: how judges of the same samples are compared."""

from experiments.reasoning.reasoning_measures import ask_questions
from experiments.value_comparison import VALUE, _Sampled, compare_judges, main
from reverse.data.scenes.reasoning import make_verified_draft, write_rationale
from reverse.files.text_reading import read_json


def make_sampled():
    """Questions with two wrong samples and a right one; one judge knows, one is always mistaken."""
    found = []
    counted = [each for each in ask_questions("val", 30) if each.question.gold.kind == "number"]
    for number, asked in enumerate(counted[:6]):
        texts = ["Answer: 99"] * 3
        texts[number % 3] = write_rationale(asked.question, asked.question.truth)
        drafts = tuple(make_verified_draft(asked.question, text, role="sample") for text in texts)
        right = [float(draft.verdict == "right") for draft in drafts]
        scores = {VALUE: right, "product": [1 - each for each in right]}
        found.append(_Sampled(asked, drafts, scores, 10))
    return found


def test_a_judge_that_knows_finds_every_right_sample():
    """Figures of two judges would be exchanged, or not be of the samples that they judged."""
    found = compare_judges(make_sampled())
    assert found[VALUE]["auroc"][0] == 1 and found["product"]["auroc"][0] == 0
    assert found[VALUE]["best"] == [1, 1, 1] and found["product"]["best"] == [0, 0, 0]
    assert found[VALUE]["weighted"][0] == 1 and found["all"]["oracle"] == [1, 1, 1]
    assert found["all"]["best_by_value_over_product"] == [1, 1, 1]
    assert found["all"]["vote"][0] < 1


def test_a_run_judges_every_sample(tmp_path):
    """Minutes of sampling would end in an error."""
    main(["--smoke", "--out", str(tmp_path)])
    found = read_json(tmp_path / "value.json")
    assert set(found["judges"]) == {"min", "product", "mean", VALUE, "all"}
    assert found["head"]["steps"] > 0 and found["tokens_a_question"] > 30
