"""POPE, MME and AMBER's questions against a plain re-computation; the strict reading; bad input."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reverse.evaluation.benchmarks import amber, mme
from reverse.evaluation.benchmarks.pope import read_pope
from reverse.evaluation.reading.yes_no import read_strictly
from reverse.evaluation.runs.scoring import score_file
from reverse.evaluation.stats.scored_tables import load_scored, save_scored
from tests.evaluation.scoring import oracle
from tests.evaluation.scoring.making import row, write_answers, yes_no

ROOT = Path(__file__).parents[3]
SETTINGS = ("random", "popular", "adversarial")
SINGLE = "\nAnswer the question using a single word or phrase."


def figures(scored):
    table, metrics = scored
    sums = table.sums()
    return {metric.name: float(metric.of(sums)) for metric in metrics}


# ---------------------------------------------------------------------- readings
@pytest.mark.parametrize(
    ("text", "by_pope", "by_amber", "by_mme", "by_words"),
    [
        ("Yes", "yes", "yes", "yes", "yes"),
        ("No, there is not.", "no", "no", "no", "no"),
        ("No,", "no", "no", "no", "no"),
        ("NO", "yes", "no", "no", "no"),  # POPE's rule knows "No" and "no"
        ("His eyes are blue.", "yes", "yes", "other", "other"),
        ("The snow is deep.", "yes", "no", "other", "other"),
        ("Noses", "yes", "no", "no", "other"),
        ("Yesterday", "yes", "yes", "yes", "other"),
        ("There isn't a dog.", "yes", "other", "other", "no"),
        ("There isn’t a dog.", "yes", "other", "other", "no"),
        ("It is not there.", "no", "no", "other", "no"),
        ("A dog sits. There are no cats.", "yes", "no", "other", "other"),
        ("Well. Yes, there is.", "yes", "yes", "other", "yes"),
        ("", "yes", "other", "other", "empty"),
        (" \n", "yes", "other", "other", "empty"),
        ("...", "yes", "other", "other", "empty"),
        ("I cannot see one", "yes", "no", "other", "no"),
        ("Yes, but not two.", "no", "yes", "yes", "yes"),
        ("Unable to answer directly due to false premises.", "yes", "other", "other", "other"),
    ],
)
def test_readings(text, by_pope, by_amber, by_mme, by_words):
    """The published readings would be mended by mistake, or the strict one would share their slips."""
    read = (
        read_pope(text),
        amber.read_amber(text),
        mme.read_mme(text),
        read_strictly(text),
    )
    assert read == (by_pope, by_amber, by_mme, by_words)


# ---------------------------------------------------------------------- POPE
@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    """Three settings of 750 questions about 125 pictures, and 2,250 answers in LLaVA's form."""
    folder = tmp_path_factory.mktemp("pope")
    rng = random.Random(2)
    answers, questions, number = [], [], 0
    labels = {}
    for setting in SETTINGS:
        rows = []
        for image in range(125):
            for k in range(6):
                shared = "shared" if k % 2 else setting  # positives are asked in every setting
                text = f"Is there a {shared} thing {k} in the image?"
                label = "yes" if k % 2 else "no"
                rows.append(
                    {"question_id": len(rows) + 1, "image": f"{image:03d}.jpg", "text": text, "label": label}
                )
                question = {"question_id": number, "image": f"{image:03d}.jpg", "text": text + SINGLE}
                questions.append(question | {"category": setting})
                said = (
                    yes_no(rng)
                    if rng.random() < 0.4
                    else rng.choice(("Yes", "No"))
                    if rng.random() < 0.3
                    else label
                )
                answers.append(row(number, said, f"val2014/{image:03d}.jpg", text + SINGLE))
                number += 1
        labels[setting] = [r["label"] for r in rows]
        (folder / f"coco_pope_{setting}.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "llava_pope_test.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder, answers, labels


def test_pope_parity(pope, tmp_path):
    """2,250 answers: every figure of every setting, as published; the total is the settings' mean."""
    folder, answers, labels = pope
    shuffled = random.Random(0).sample(answers, len(answers))  # published scripts need the file's order
    scored = score_file(write_answers(tmp_path / "a.jsonl", shuffled), folder)
    table = scored[0]
    assert table.benchmark == "pope" and sorted(table.part_names) == sorted(SETTINGS)
    assert len(set(table.clusters)) == 125
    found = figures(scored)
    wanted = {}
    for n, setting in enumerate(SETTINGS):
        texts = [answer["text"] for answer in answers[750 * n : 750 * (n + 1)]]
        wanted[setting] = oracle.pope(texts, labels[setting])
        for name, value in wanted[setting].items():
            assert found[f"{name}@{setting}"] == pytest.approx(value, abs=1e-7), (name, setting)
    for name in ("f1", "accuracy", "precision", "recall", "yes_share"):
        assert found[name] == pytest.approx(np.mean([wanted[s][name] for s in SETTINGS]), abs=1e-7)
    assert table.notes["readings_differ"] > 0 and found["strict_accuracy"] != found["accuracy"]
    assert found["no_answer"] == pytest.approx(
        np.mean([read_strictly(a["text"]) in ("other", "empty") for a in answers])
    )


def test_strict_counts_what_is_no_answer_as_wrong(pope, tmp_path):
    """An answer without yes or no would help precision or recall."""
    folder, answers, _ = pope
    rows = [answer | {"text": "A dog."} for answer in answers]
    found = figures(score_file(write_answers(tmp_path / "a.jsonl", rows), folder))
    assert found["accuracy"] == 0.5 and found["yes_share"] == 1  # published: whatever is not no is yes
    assert (
        found["strict_accuracy"] == 0 and found["strict_recall"] == 0 and np.isnan(found["strict_precision"])
    )
    assert found["no_answer"] == 1


def test_strict_is_silent_where_it_agrees(pope, tmp_path):
    """Every figure would stand twice in every report."""
    folder, answers, _ = pope
    rows = [answer | {"text": "Yes" if n % 2 else "No"} for n, answer in enumerate(answers)]
    found = figures(score_file(write_answers(tmp_path / "a.jsonl", rows), folder))
    assert not any(name.startswith("strict") for name in found) and found["accuracy"] == 1


def test_pope_without_the_question_file(pope, tmp_path):
    """Ids as `reverse eval` makes them, or a category in the row, would not be understood."""
    folder, answers, _ = pope
    for setting in SETTINGS:
        (tmp_path / f"coco_pope_{setting}.json").write_text(
            (folder / f"coco_pope_{setting}.json").read_text()
        )
    named, told = [], []
    for n, answer in enumerate(answers):
        setting = SETTINGS[n // 750]
        named.append(answer | {"question_id": f"{setting}/{n % 750 + 1}"})
        told.append(answer | {"metadata": {"category": setting}})
    want = figures(score_file(write_answers(tmp_path / "a.jsonl", answers), folder))
    for rows in (named, told):
        assert figures(score_file(write_answers(tmp_path / "a.jsonl", rows), tmp_path)) == want


def test_one_setting_alone_and_what_is_missing(pope, tmp_path):
    """A setting that was not run would count as unanswered, a question that was lost would not."""
    folder, answers, _ = pope
    path = tmp_path / "a.jsonl"
    found = figures(score_file(write_answers(path, answers[:750]), folder))
    assert "f1@random" not in found and 0 < found["f1"] < 1
    with pytest.raises(ValueError, match=r"random: 2 of 750 questions have no answer: 'is there"):
        score_file(write_answers(path, answers[2:750]), folder)
    table, _ = score_file(path, folder, partial=True)
    assert len(table.clusters) == 748
    twice = [*answers[:750], answers[0] | {"question_id": 1, "prompt": answers[0]["prompt"] + " "}]
    with pytest.raises(ValueError, match="answered more often than asked"):
        score_file(write_answers(path, twice), folder)
    other = [row(n, "Yes", "x.jpg", "Is it red?") for n in range(3)]
    with pytest.raises(ValueError, match=r"3 answers match no label .* none of them is a question of POPE"):
        score_file(write_answers(path, other), folder)
    with pytest.raises(FileNotFoundError, match="pope_random"):
        score_file(path, tmp_path, "pope-gqa")


# ---------------------------------------------------------------------- MME
TASKS = (*mme.PERCEPTION, *mme.COGNITION)


@pytest.fixture(scope="module")
def mme_files(tmp_path_factory):
    """All fourteen tasks, 80 pictures each: 2,240 answers."""
    folder = tmp_path_factory.mktemp("mme")
    rng = random.Random(4)
    rows, answers, pairs = [], [], {}
    for task in TASKS:
        for picture in range(80):
            pair = []
            for k, label in enumerate(("Yes", "No")):
                question = f"Is number {k} of {picture} right? Please answer yes or no."
                name = f"{task}/{picture:04d}.png"
                rows.append({"question_id": name, "category": task, "question": question, "answer": label})
                said = yes_no(rng) if rng.random() < 0.4 else label
                asked = question.replace("  Please", " Please") + SINGLE if picture % 2 else question
                answers.append(row(f"{name}#{k + 1}", said, name, asked))
                pair.append((said, label.lower()))
            pairs.setdefault(task, []).append(pair)
    (folder / "mme.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder, rows, answers, pairs


def test_mme_parity(mme_files, tmp_path):
    """2,240 answers: the score of every task and of the groups, as published."""
    folder, _, answers, pairs = mme_files
    scored = score_file(write_answers(tmp_path / "a.jsonl", answers), folder)
    found = figures(scored)
    wanted = {task: oracle.mme(pairs[task]) for task in TASKS}
    for task in TASKS:
        assert found[f"score@{task}"] == pytest.approx(wanted[task])
        assert 100 * (found[f"acc@{task}"] + found[f"acc_plus@{task}"]) == pytest.approx(wanted[task])
    for name, group in (
        ("hallucination", mme.HALLUCINATION),
        ("perception", mme.PERCEPTION),
        ("full", TASKS),
    ):
        assert found[f"score_{name}"] == pytest.approx(sum(wanted[task] for task in group))
    assert "strict_score_hallucination" in found
    table = scored[0]
    assert len(set(table.clusters)) == 80 * 14 and table.columns["pairs"].sum() == 80 * 14


def test_mme_ids_as_published(mme_files, tmp_path):
    """Both questions of a picture have its id: one would be a repetition, or lost in comparing."""
    folder, _, answers, _ = mme_files
    want = score_file(write_answers(tmp_path / "a.jsonl", answers), folder)
    rows = [answer | {"question_id": answer["question_id"].partition("#")[0]} for answer in answers]
    table, metrics = score_file(write_answers(tmp_path / "a.jsonl", rows), folder)
    assert figures((table, metrics)) == figures(want) and len(set(table.keys)) == len(answers)


def test_mme_stored_tables_are_read_again(mme_files, tmp_path):
    """A total is not a ratio: a stored table would lose it."""
    folder, _, answers, _ = mme_files
    table, metrics = score_file(write_answers(tmp_path / "a.jsonl", answers[:640]), folder, "mme-hall")
    save_scored(tmp_path / "t.json", table, metrics)
    assert figures(load_scored(tmp_path / "t.json")) == figures((table, metrics))
    # … by a process that has scored nothing, such as `reverse compare`
    script = (
        "from reverse.evaluation.stats.scored_tables import load_scored; "
        f"print(len(load_scored({str(tmp_path / 't.json')!r})[1]))"
    )
    read = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(read.stdout) == len(metrics)
    assert table.notes["tasks_left_out"] == list(TASKS[4:])
    assert {"score_hallucination", "score@count"} <= {m.name for m in metrics}
    assert not {"score_perception", "score_full"} & {m.name for m in metrics}


def test_mme_differences(mme_files, tmp_path):
    """Intended: empty answers, tabs and line ends are answers; the two of a picture may stand apart."""
    folder, _, answers, pairs = mme_files
    existence = answers[:160]
    mixed = [existence[i] for i in [*range(0, 160, 2), *range(1, 160, 2)]]
    found = figures(score_file(write_answers(tmp_path / "a.jsonl", mixed), folder))
    assert found["score@existence"] == pytest.approx(oracle.mme(pairs["existence"]))
    odd = [
        answer | {"text": ("", "\t", "yes\tit is", "no\nnot")[n % 4]} for n, answer in enumerate(existence)
    ]
    found = figures(score_file(write_answers(tmp_path / "a.jsonl", odd), folder))
    assert found["acc@existence"] == pytest.approx(0.5) and found["acc_plus@existence"] == pytest.approx(0.5)
    assert found["empty"] == pytest.approx(0.5)


def test_mme_other_forms_of_the_questions(mme_files, tmp_path):
    """The released folders and the hub's parquet files would not be found, or read otherwise."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder, rows, answers, _ = mme_files
    want = figures(score_file(write_answers(tmp_path / "a.jsonl", answers), folder))
    (tmp_path / "hub" / "MME" / "data").mkdir(parents=True)
    columns = {key: [r[key] for r in rows] for key in rows[0]} | {"image": [b""] * len(rows)}
    pq.write_table(pa.table(columns), tmp_path / "hub" / "MME" / "data" / "test.parquet")
    for r in rows:
        inner = ("questions_answers_YN",) if r["category"] in mme.HALLUCINATION else ()
        place = tmp_path.joinpath("MME_Benchmark_release_version", r["category"], *inner)
        place.mkdir(parents=True, exist_ok=True)
        with (place / f"{r['question_id'].rpartition('/')[2][:-4]}.txt").open("a") as file:
            file.write(f"{r['question']}\t{r['answer']}\n")
    for truth in (tmp_path / "hub", tmp_path):
        assert figures(score_file(tmp_path / "a.jsonl", truth, "mme")) == want


def test_mme_bad_input(mme_files, tmp_path):
    """A lost question halves accuracy+ without a word."""
    folder, rows, answers, _ = mme_files
    path = tmp_path / "a.jsonl"
    with pytest.raises(
        ValueError, match="1 questions of the answered MME tasks have no answer: existence/0000"
    ):
        score_file(write_answers(path, answers[1:160]), folder)
    assert figures(score_file(path, folder, partial=True))["acc_plus@existence"] < 1
    with pytest.raises(ValueError, match="none of them is a question of MME"):
        score_file(write_answers(path, [row(1, "Yes", "1.jpg", "Is it?")]), folder)
    twice = [*answers[:160], answers[0] | {"question_id": "existence/0000.png#3"}]
    with pytest.raises(ValueError, match="answered twice"):
        score_file(write_answers(path, twice), folder)
    (tmp_path / "mme.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match="without exactly two questions"):
        score_file(write_answers(path, answers[:1]), tmp_path, "mme")
