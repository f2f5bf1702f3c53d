"""The lines that the published scripts print, recomputed answer by answer as those scripts go."""

import json

import numpy as np

from reverse.data.scenes.benchmark_files import write_benchmarks
from reverse.evaluation import benchmarks
from reverse.evaluation.runs.scoring import score_file
from tests.evaluation.scoring.making import row, write_answers


def printed(values):
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{np.mean(values):.1f} ({low:.1f} – {high:.1f})"


def test_amber_prints_means_of_rounds(tmp_path):
    """The figure that papers quote is a mean of 100 rounds, which no note would have held."""
    kinds = ("discriminative-hallucination", "discriminative-attribute-state", "discriminative-relation")
    items = [{"id": n, "type": kinds[n % 3], "truth": ("yes", "no")[n * n % 7 % 2]} for n in range(60)]
    (tmp_path / "annotations.json").write_text(json.dumps(items))
    said = [("No", "Yes", "his eyes", "hm")[n * n % 11 % 4] for n in range(60)]
    path = write_answers(tmp_path / "a.jsonl", [row(n, said[n]) for n in range(60)])
    found = score_file(path, tmp_path, "amber-d")[0].notes["published_bootstrap"]

    rng = np.random.default_rng(42)
    rounds = {name: [] for name in ("Accuracy", "Precision", "Recall", "F1")}
    for _ in range(100):
        right = no_right = 0
        asked = no_said = no_asked = 0.001  # the start values of metrics.txt
        for n in rng.choice(60, 60, replace=True):
            reading = "yes" if "yes" in said[n].lower() else "no" if "no" in said[n].lower() else ""
            asked, right = asked + 1, right + (reading == items[n]["truth"])
            no_said, no_asked = no_said + (reading == "no"), no_asked + (items[n]["truth"] == "no")
            no_right += reading == "no" == items[n]["truth"]
        precision, recall = no_right / no_said, no_right / no_asked
        f1 = 2 * precision * recall / (precision + recall + 1e-6)
        for name, value in zip(rounds, (right / asked, precision, recall, f1), strict=True):
            rounds[name].append(100 * value)
    assert found == {name: printed(values) for name, values in rounds.items()}


def test_the_published_scorer_finds_every_question_of_mme(tmp_path):
    """It looks a question up by its words, with the request behind it: all of scenes' were unknown to it."""
    write_benchmarks(tmp_path, "test", 6)
    rows = [json.loads(line) for line in (tmp_path / "MME/mme.jsonl").read_text().splitlines()]
    known = {(each["question_id"].split("/")[0], each["question"]): each["answer"] for each in rows}
    asked = benchmarks.named("mme-hall")[0].questions(tmp_path)
    for question in asked:  # as it makes a question of what was asked
        prompt = f"{question.prompt} Please answer yes or no."
        assert known[(str(question.id).split("/")[0], prompt)] == question.metadata["label"]
    answers = [row(q.id, q.metadata["label"], q.image, q.prompt) for q in asked]
    table, _ = score_file(write_answers(tmp_path / "a.jsonl", answers), tmp_path, "mme-hall")
    assert table.columns["right"].all() and len(table.clusters) == len(rows)
