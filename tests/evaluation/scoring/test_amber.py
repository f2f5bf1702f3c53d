"""AMBER against a plain re-computation of its script; closeness by vectors; bad input."""

import json
import random

import numpy as np
import pytest

from reverse.evaluation.benchmarks import amber
from reverse.evaluation.reading.amber_words import by_similarity
from reverse.evaluation.reading.answers import read_answers
from reverse.evaluation.runs.scoring import score_file
from tests.evaluation.scoring import oracle
from tests.evaluation.scoring.making import mutated, row, write_answers, yes_no

# A net of AMBER's shape: names, with words that may stand for them.
RELATION = {
    "sky": [], "grass": ["ground"], "person": ["people", "man", "woman", "boy"],
    "child": ["kid", "man", "boy"],
    "man": ["person", "boy"], "woman": ["person", "girl"], "tree": ["forest", "leave"], "forest": ["tree"],
    "car": ["window", "door", "light"], "bus": ["car", "truck", "door"], "television": ["TV", "screen"],
    "sea": ["water", "lake"], "lake": ["water", "sea"], "dog": [], "cat": [], "glass": [],
    "orange": ["tangerine"],
    "ship": ["boat"], "bench": ["chair"], "chair": ["bench"], "sign": ["street"],
    "road": ["path", "street"],
}  # fmt: skip
SAFE = ["orange", "light", "sign", "individual"]
NAMES = list(RELATION)
EVERY = sorted({*RELATION, *(w for ws in RELATION.values() for w in ws)})
KINDS = ("discriminative-hallucination", "discriminative-attribute-state", "discriminative-attribute-number",
         "discriminative-attribute-action", "discriminative-relation")  # fmt: skip
CAPTIONS, QUESTIONS = 2000, 2200
CLOSE = set(
    map(frozenset, zip(["boat", "kid", "truck", "water", "cat", "window", "street", "TV"],
                       ["sea", "boy", "car", "sea", "dog", "glass", "road", "screen"], strict=True))
)  # fmt: skip


def similar(first, second):
    """Stands for word vectors: as with them, equal words are close, and the relation is symmetric."""
    return first == second or frozenset((first, second)) in CLOSE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amber")
    rng = random.Random(3)
    items, captions, questions = [], [], []
    for n in range(1, CAPTIONS + 1):
        truth = rng.choices(NAMES, k=rng.choice((0, 1, 4, 7, 9)))
        hallu = rng.choices(NAMES, k=rng.choice((0, 2, 5)))
        items.append({"id": n, "type": "generative", "truth": truth, "hallu": hallu})
        text = "".join(
            rng.choice(
                ("The {} stands near a {}. ", "Two {}s and a red {} are here. ", "A {}, the {}'s owner. ")
            ).format(rng.choice(EVERY), rng.choice(EVERY))
            for _ in range(rng.choice((1, 2, 4)))
        )
        captions.append(
            row(n, "" if n % 97 == 0 else mutated(text, rng), f"AMBER_{n}.jpg", "Describe this image.")
        )
    for n in range(CAPTIONS + 1, CAPTIONS + QUESTIONS + 1):
        kind = rng.choice(KINDS)
        label = rng.choice(("yes", "no"))
        items.append({"id": n, "type": kind, "truth": label})
        said = yes_no(rng) if rng.random() < 0.5 else label.title()
        questions.append(row(n, said, f"AMBER_{n % 200}.jpg", "Is it?"))
    (folder / "annotations.json").write_text(json.dumps(items))
    (folder / "relation.json").write_text(json.dumps(RELATION))
    (folder / "safe_words.txt").write_text("\n".join(SAFE))
    return folder, items, captions, questions


def figures(scored):
    table, metrics = scored
    sums = table.sums()
    return {metric.name: float(metric.of(sums)) for metric in metrics}


@pytest.mark.parametrize("close", [similar, lambda a, b: a == b], ids=["vectors", "equal"])
def test_caption_parity(made, tmp_path, close):
    """2,000 captions: the four figures as printed, and within rounding as reported."""
    folder, items, captions, _ = made
    answers = read_answers(write_answers(tmp_path / "a.jsonl", captions))
    table, metrics = amber.score_captions(answers, folder, close=close)
    wanted = oracle.amber_captions([c["text"] for c in captions], items[:CAPTIONS], RELATION, SAFE, close)
    assert table.notes["published"] == wanted
    found = figures((table, metrics))
    for ours, theirs in (("chair", "CHAIR"), ("cover", "Cover"), ("hal", "Hal"), ("cog", "Cog")):
        assert 100 * found[ours] == pytest.approx(wanted[theirs], abs=0.051)
    assert 0.05 < found["chair"] < 0.95 and 0 < found["cog"] < 1


def test_an_item_without_objects(made, tmp_path):
    """Intended, and the same figure: `[-0:]` of the published script is the whole list, which is empty."""
    for truth, hallu in (([], ["dog"]), (["dog"], []), ([], [])):
        item = {"id": 1, "type": "generative", "truth": truth, "hallu": hallu}
        (tmp_path / "annotations.json").write_text(json.dumps([item]))
        for name in ("relation.json", "safe_words.txt"):
            (tmp_path / name).write_text((made[0] / name).read_text())
        answers = read_answers(write_answers(tmp_path / "a.jsonl", [row(1, "A dog by a car.", "1.jpg")]))
        table, _ = amber.score_captions(answers, tmp_path, close=similar)
        assert table.notes["published"] == oracle.amber_captions(
            ["A dog by a car."], [item], RELATION, SAFE, similar
        )
        assert table.columns["objects"][0] == len(truth) and table.columns["expectable"][0] == len(hallu)


def test_question_parity(made, tmp_path):
    """2,200 answers: overall and by dimension, as printed, and within rounding as reported."""
    folder, items, _, questions = made
    table, metrics = score_file(write_answers(tmp_path / "a.jsonl", questions), folder)
    assert table.benchmark == "amber-d"
    found = figures((table, metrics))
    dimension = dict(zip(KINDS, ("existence", "state", "number", "action", "relation"), strict=True))
    groups = {"overall": KINDS, "attribute": KINDS[1:4]} | {name: (kind,) for kind, name in dimension.items()}
    for name, kinds in groups.items():
        both = [
            (q["text"], item["truth"])
            for q, item in zip(questions, items[CAPTIONS:], strict=True)
            if item["type"] in kinds
        ]
        wanted = oracle.amber_questions(
            *zip(*both, strict=True), added=0.001 if name == "existence" else 0.0001
        )
        assert table.notes["published"][name] == wanted, name
        suffix = "" if name == "overall" else f"@{name}"
        for figure in ("accuracy", "precision", "recall"):
            assert 100 * found[figure + suffix] == pytest.approx(wanted[figure.title()], abs=0.051)
        assert 100 * found["f1" + suffix] == pytest.approx(wanted["F1"], abs=0.11)
    assert table.notes["readings_differ"] > 100 and "strict_f1@relation" in found
    assert len(set(table.clusters)) == 200


def test_closeness_is_that_of_spacy():
    """Words would be compared otherwise than by the documents' similarity, or read once a pair."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    rng = np.random.default_rng(0)
    for word in EVERY:
        nlp.vocab.set_vector(word, rng.normal(size=3).astype("float32"))
    read = []
    close = by_similarity(lambda word: read.append(word) or nlp(word))
    found = {(a, b): close(a, b) for a in EVERY for b in EVERY}
    assert found == {(a, b): nlp(a).similarity(nlp(b)) > 0.8 for a in EVERY for b in EVERY}
    assert 0.01 < np.mean(list(found.values())) < 0.5 and len(read) == len(EVERY)


def test_the_fallback_is_named(made, tmp_path, monkeypatch):
    """Figures without the word vectors would be taken for published ones."""
    folder, _, captions, _ = made
    spacy = pytest.importorskip("spacy")

    def absent(name):
        raise OSError(f"no {name}")

    monkeypatch.setattr(spacy, "load", absent)
    table, _ = score_file(write_answers(tmp_path / "a.jsonl", captions), folder)
    assert "equal words only: en_core_web_lg is not installed" in table.notes["similarity"]


def test_bad_input(made, tmp_path):
    """Answers of the other half, or a run cut short, would be scored as AMBER."""
    folder, _, captions, questions = made
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match="not answers to AMBER's captions"):
        score_file(write_answers(path, questions), folder, "amber-g")
    with pytest.raises(ValueError, match="2200 answered questions are not in the truth"):
        score_file(write_answers(path, captions + questions), folder, "amber-g")
    with pytest.raises(ValueError, match=r"1 of 2000 questions .* have no answer: 5;"):
        score_file(write_answers(path, captions[:4] + captions[5:]), folder)
    assert len(score_file(path, folder, partial=True)[0].clusters) == 1999
    with pytest.raises(FileNotFoundError, match=r"relation\.json"):
        (tmp_path / "annotations.json").write_text((folder / "annotations.json").read_text())
        score_file(path, tmp_path, "amber-g", partial=True)


def test_phrases_of_one_answer_are_judged_apart(made):
    """Calibration and sweep would refuse every answer with two phrases, or mix their verdicts up."""
    from reverse.evaluation.detector.phrase_truth import BenchmarkTruth

    folder, _, captions, _ = made
    said = [(answer, answer["text"]) for answer in captions[:3] for _ in range(2)]
    said += [(captions[0], "it is so")]
    found = BenchmarkTruth(folder, "amber-g").judge(said)
    assert found[0] == found[1] and found[2] == found[3] and found[4] == found[5] and found[6] is None
    alone = [BenchmarkTruth(folder, "amber-g").judge([each])[0] for each in said]
    assert found == alone
