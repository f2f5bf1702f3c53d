"""Yes and no behind reasoning, JSON and markup, and in other languages than English."""

import json

import pytest

from reverse.evaluation.benchmarks import amber, mme
from reverse.evaluation.benchmarks.pope import read_pope
from reverse.evaluation.reading.markup import LONGEST, extract_plain_text, remove_reasoning
from reverse.evaluation.reading.yes_no import read_strictly
from reverse.evaluation.runs.scoring import score_file
from tests.evaluation.scoring.making import row, write_answers


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("<think>Is there a dog? No, I see none.</think>Yes", "yes"),
        ("<think>\nYes, maybe.\n</think>\n\nNo, there is not.", "no"),
        ("It could be. Yes? No.\n</think>\nYes.", "yes"),  # the template opened it
        ("<think>Yes, there is", "empty"),  # cut off by the length limit
        ("<THINK>no</THINK> **Yes**", "yes"),
        ("<thinking>no <think>no</think> no</thinking>yes", "yes"),
        ("◁think▷no◁/think▷yes", "yes"),
        ("[THINK]no[/THINK]yes", "yes"),
        ("<think>no</think><answer> yes </answer>", "yes"),
        ("No idea yet. <answer>yes</answer>", "yes"),
        ('{"answer": "yes"}', "yes"),
        ('```json\n{"reason": "I do not see a cat", "answer": "Yes"}\n```', "yes"),
        ('[{"answer": "no", "confidence": 0.9}]', "no"),
        ('{"yes": 0.1, "no": 0.9}', "empty"),  # says nothing that could be read for sure
        ('{"is_there": false}', "no"),
        ('{"Answer": true, "why": "no doubt"}', "yes"),
        ('{"answer": ["yes"]}', "empty"),
        ("{broken json: yes", "yes"),
        ("**No**", "no"),
        ("__Yes__", "yes"),
        ("<b>No</b>, there is none", "no"),
        ('<span class="no">Yes</span>', "yes"),
        ("# Answer\nYes", "yes"),
        ("$\\boxed{no}$", "no"),
        ("是", "unread"),
        ("否。", "unread"),
        ("不是,没有狗 (no)", "unread"),
        ("Yes (是)", "yes"),
        ("Да, конечно", "unread"),
        ("はい", "unread"),
        ("Oui, il y a un chien.", "unread"),
        ("No hay ningún perro en la imagen.", "unread"),
        ("Nein, es gibt keinen Hund.", "unread"),
        ("No, the picture shows a café.", "no"),
        ("No, that is Robert De Niro.", "no"),
        ("No, Los Angeles.", "no"),
        ("Yes, il y a un chien.", "yes"),
        ("<think>" * 150_000 + "yes", "empty"),
        ("yes " * 50_000, "unread"),
    ],
    ids=lambda value: value[:40],
)
def test_strict_readings(text, reading):
    """Reasoning that says no before an answer of yes would be the answer; another language would be a no."""
    assert read_strictly(text) == reading


def test_published_readings_stay_as_they_are():
    """The figures that everybody reports come of the letters, reasoning and markup included."""
    text = "<think>no</think>Yes"
    assert (read_pope("<think> no </think>Yes"), amber.read_amber(text), mme.read_mme("**Yes**")) == (
        "no",
        "yes",
        "other",
    )
    assert amber.read_amber("Nein, keine Ahnung, no") == "no" and read_pope("是") == "yes"


def test_reasoning_is_taken_off():
    """What stands between two thoughts, or around them, would be lost or kept twice."""
    assert remove_reasoning("a <think>b</think> c <think>d</think> e") == "a  c  e"
    assert remove_reasoning("a</think>b</think>c") == "c"
    assert remove_reasoning("I think <b>so</b>") == "I think <b>so</b>"
    assert extract_plain_text("*a* `b`\n```\nc\n```") == "a b\n\nc"


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "<answer>", "</answer>", "<", "<a", "```", "{", '{"a":', "*_", "[[", '"', "是",
     ".", "yes.no ", "n't ", "◁/think▷"],
)  # fmt: skip
def test_hostile_answers_are_read(piece):
    """A megabyte of markup would be read in quadratic time, or deep brackets raise."""
    assert read_strictly(piece * (1_000_000 // len(piece))) in ("empty", "other", "yes", "no", "unread")
    assert len(extract_plain_text(piece * 1000)) <= max(LONGEST, 1000 * len(piece))


def figures(scored):
    table, metrics = scored
    return {metric.name: float(metric.of(table.sums())) for metric in metrics}


def test_what_is_not_read_is_reported(tmp_path):
    """Chinese answers would help or hurt as yes or no, and nobody would know."""
    said = ("是", "否", "Yes", "<think>no</think>No")
    labels = ("yes", "no", "yes", "no")
    asked = [
        {"question_id": n, "image": f"{n}.jpg", "text": f"Is it {n}?", "label": labels[n]} for n in range(4)
    ]
    (tmp_path / "coco_pope_random.json").write_text("".join(json.dumps(q) + "\n" for q in asked))
    rows = [row(n, said[n], f"{n}.jpg", f"Is it {n}?") for n in range(4)]
    found = figures(score_file(write_answers(tmp_path / "p.jsonl", rows), tmp_path))
    assert found["not_read"] == 0.5 and found["no_answer"] == 0
    assert found["strict_accuracy"] == 0.5 and found["strict_yes_share"] == 0.25

    items = [{"id": n, "type": "discriminative-hallucination", "truth": labels[n]} for n in range(4)]
    (tmp_path / "annotations.json").write_text(json.dumps(items))
    found = figures(amber.score_questions(read(tmp_path, rows), tmp_path))
    assert found["not_read"] == 0.5 and found["strict_recall"] == 0.5  # "no" is positive: 否 is none

    lines = [
        {
            "question_id": f"count/{n // 2}.png",
            "category": "count",
            "question": f"Is it {n}?",
            "answer": labels[n],
        }
        for n in range(4)
    ]
    (tmp_path / "mme.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [row(f"count/{n // 2}.png#{n % 2}", said[n], f"{n // 2}.png", f"Is it {n}?") for n in range(4)]
    found = figures(mme.score(read(tmp_path, rows), tmp_path))
    assert found["not_read"] == 0.5 and found["strict_acc@count"] == 0.5

    rows = [row(n, labels[n], f"{n}.jpg", f"Is it {n}?") for n in range(4)]
    assert "not_read" not in figures(score_file(write_answers(tmp_path / "p.jsonl", rows), tmp_path, "pope"))


def read(folder, rows):
    from reverse.evaluation.reading.answers import read_answers

    return read_answers(write_answers(folder / "a.jsonl", rows))
