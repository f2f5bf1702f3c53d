"""CHAIR against a plain re-computation, its truth, the cache, and bad input."""

import hashlib
import json
import random

import numpy as np
import pytest

from reverse.data.scenes import write_scenes
from reverse.evaluation.benchmarks import ScoringOptions, chair
from reverse.evaluation.reading import chair_words, coco_truth
from reverse.evaluation.reading.answers import read_answers
from reverse.evaluation.runs.scoring import score_file
from tests.evaluation.scoring import oracle
from tests.evaluation.scoring.making import captions, row, write_answers

COUNT = 2200
IMAGES = 150


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """COCO annotations in two splits with odd captions, and an answers file of 2,200 made captions."""
    folder = tmp_path_factory.mktemp("coco")
    rng = random.Random(5)
    texts = captions(2 * IMAGES, seed=7)
    categories = [{"id": 3 * i + 1, "name": name} for i, name in enumerate(chair_words.OBJECTS)]
    images = [{"id": 17 * i + 3} for i in range(IMAGES)]
    for image in images:
        image["file_name"] = f"COCO_val2014_{image['id']:012d}.jpg"
    annotations = [
        {"segmentation": [[1.5, 2.25]], "image_id": rng.choice(images)["id"], "bbox": [0, 0, 1, 1],
         "category_id": rng.choice(categories)["id"], "id": n}
        for n in range(4 * IMAGES)
    ]  # fmt: skip
    said = [{"image_id": images[n % IMAGES]["id"], "id": n, "caption": text} for n, text in enumerate(texts)]
    instances = {"info": {"a": [1, {"annotations": []}]}, "images": images, "licenses": [],
                 "annotations": annotations, "categories": categories}  # fmt: skip
    spoken = {"images": images, "annotations": said}
    half = IMAGES // 2
    inside = {image["id"] for image in images[:half]}
    for split, mine in (("train", images[:half]), ("val", images[half:])):
        of = [a for a in annotations if (a["image_id"] in inside) == (split == "train")]
        (folder / f"instances_{split}2014.json").write_text(
            json.dumps(instances | {"images": mine, "annotations": of}, indent=split == "val")
        )
        of = [a for a in said if (a["image_id"] in inside) == (split == "train")]
        (folder / f"captions_{split}2014.json").write_text(
            json.dumps({"annotations": of, "images": mine}, ensure_ascii=split == "val")
        )
    rows = []
    for n, text in enumerate(captions(COUNT, seed=11)):
        image = images[n % IMAGES]
        name = image["file_name"] if n % 3 else f"val2014/{image['file_name']}" if n % 2 else image["id"]
        rows.append(row(n, text, name, "Describe.", successful_correction=True))
    answers = write_answers(folder / "answers.jsonl", rows)
    return folder, answers, rows, oracle.coco_objects(instances, spoken)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    """The user's cache is left alone; the language data stay where they are."""
    language = coco_truth.cache_root()
    monkeypatch.setattr(coco_truth, "cache_root", lambda: tmp_path)
    assert language != tmp_path


def test_the_vocabulary_is_the_published_one():
    """A word lost or added changes every figure; the hashes are of the published list less its slips."""

    def digest(table):
        return hashlib.sha256("\n".join(f"{k}={v}" for k, v in sorted(table.items())).encode()).hexdigest()

    assert digest(chair_words._OBJECT_OF).startswith("f2cbe7e1315daef6")
    assert digest(chair_words._PAIRS).startswith("59d2714403363adf")


def test_parity_on_made_captions(made):
    """Figures would not be those of published results: 2,200 captions, word for word and in sum."""
    folder, answers, rows, truth = made
    table, metrics = score_file(answers, folder, "chair")
    places = [int(str(r["image_id"]).rpartition("_")[2].removesuffix(".jpg")) for r in rows]
    for n, r in enumerate(rows):
        objects, words = oracle.chair_words(r["text"])
        said, length = chair_words.find_mentions(r["text"])
        assert ([name for _, name in said], length) == (objects, words), r["text"]
        assert table.columns["wrong"][n] == sum(name not in truth[places[n]] for name in objects)
    wanted = oracle.chair([r["text"] for r in rows], [truth[place] for place in places])
    sums = table.sums()
    found = {m.name: float(m.of(sums)) for m in metrics}
    assert [found[n] for n in ("chair_s", "chair_i", "recall", "length")] == pytest.approx(wanted, abs=1e-12)
    assert 0.2 < found["chair_i"] < 0.99  # the captions are neither all right nor all wrong
    printed = dict(zip(("CHAIRs", "CHAIRi", "Recall", "Len"), wanted, strict=True))
    printed["Len"] *= 0.01
    assert table.notes["published"] == {name: f"{100 * value:.2f}" for name, value in printed.items()}


def test_truth_is_instances_and_captions(made):
    """An object that only a caption names would count as made up, as would one that is only outlined."""
    folder, _, _, truth = made
    known = coco_truth.read_coco_truth(folder)
    assert {int(i): known.objects(str(i)) for i in known.ids} == truth
    assert set(known.sources) == {path.name for path in folder.glob("*_*2014.json")}


def test_many_processes_give_the_same_truth(made, monkeypatch):
    """Captions would be credited to other images when they are read in parallel."""
    monkeypatch.setattr(coco_truth, "ALONE", 0)
    monkeypatch.setattr(coco_truth, "SHARE", 100)
    folder, _, _, truth = made
    seen = []
    known = coco_truth.read_coco_truth(folder, workers=2, progress=lambda *at: seen.append(at), cache=False)
    assert {int(i): known.objects(str(i)) for i in known.ids} == truth
    assert seen[-1] == (2 * IMAGES, 2 * IMAGES)


def test_the_cache_is_used_renewed_and_mended(made, tmp_path, monkeypatch):
    """A stale or torn cache would give wrong figures, a lost one two minutes for every score."""
    folder, *_ = made
    first = coco_truth.read_coco_truth(folder)
    (cached,) = (tmp_path / "chair").iterdir()
    built = []
    build = coco_truth._build
    monkeypatch.setattr(coco_truth, "_build", lambda *a: built.append(1) or build(*a))
    again = coco_truth.read_coco_truth(folder)
    assert not built and np.array_equal(again.packed, first.packed) and again.sources == first.sources
    assert list(again.names) == list(first.names)
    data = cached.read_bytes()
    for broken in (data[: len(data) // 2], b"", data[:60] + bytes([data[60] ^ 1]) + data[61:], b"PK"):
        cached.write_bytes(broken)
        assert np.array_equal(coco_truth.read_coco_truth(folder).packed, first.packed)
    assert 3 <= len(built) <= 4
    path = folder / "captions_val2014.json"
    before = path.read_text()
    try:
        path.write_text(before + " ")
        coco_truth.read_coco_truth(folder)
        assert len(built) >= 4 and len(list((tmp_path / "chair").iterdir())) == 2
    finally:
        path.write_text(before)


def test_differences_from_the_published_script(made, tmp_path):
    """Intended: an unknown image is an error, no mention at all leaves CHAIRi undefined."""
    folder, _, rows, _ = made
    path = write_answers(
        tmp_path / "a.jsonl", [rows[0], row(9999, "A dog.", "COCO_val2014_000000000001.jpg")]
    )
    with pytest.raises(ValueError, match=r"1 images are not in the truth .*000000000001\.jpg"):
        score_file(path, folder, "chair")
    path = write_answers(tmp_path / "b.jsonl", [row(1, "Nothing here.", rows[0]["image_id"])])
    table, metrics = score_file(path, folder, "chair")
    assert np.isnan(metrics[0].of(table.sums())) and table.notes["published"]["CHAIRi"] == "0.00"


def test_scenes_are_scored_as_coco_is(tmp_path):
    """The world that everything is tried in could not be scored by the published metric."""
    write_scenes(tmp_path / "scenes", "test", 4)
    said = json.loads((tmp_path / "scenes" / "captions.json").read_text())["annotations"]
    rows = [row(c["id"], c["caption"], f"test-{c['image_id']:06d}.png") for c in said]
    table, metrics = score_file(write_answers(tmp_path / "a.jsonl", rows), tmp_path / "scenes")
    assert table.benchmark == "chair" and table.columns["mentions"].sum() > 8
    assert float(metrics[0].of(table.sums())) == 0  # the reference captions themselves


def test_a_caption_of_three_thousand_words(made, tmp_path):
    """A runaway answer would take minutes, or a deep recursion would end scoring."""
    folder, _, rows, _ = made
    text = " ".join(f"dogs are skiing by the {n} trains" for n in range(450)) + "." + " dog" * 5
    table, _ = score_file(
        write_answers(tmp_path / "a.jsonl", [row(1, text, rows[0]["image_id"])]), folder, "chair"
    )
    objects, words = oracle.chair_words(text)
    assert table.columns["mentions"][0] == len(objects) and table.columns["words"][0] == words > 3000


def test_a_caption_that_is_too_long_is_left_out_and_told(made, tmp_path):
    """A text of 100,000 characters was read for seven seconds."""
    folder, _, rows, _ = made
    texts = ["a dog. ", "a dog. " * 2500]
    written = [row(n, text, rows[n]["image_id"]) for n, text in enumerate(texts)]
    table, _ = score_file(write_answers(tmp_path / "a.jsonl", written), folder, "chair")
    assert len(table.columns["mentions"]) == table.notes["skipped_rows"] == 1
    assert "line 2: the answer has 17,500 characters, at most 16,000 are read" in table.notes["skipped"][0]
    with pytest.raises(ValueError, match="2 of 2 rows cannot be used"):
        score_file(
            write_answers(tmp_path / "a.jsonl", [{**r, "text": texts[1]} for r in written]), folder, "chair"
        )


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("instances_val2014.json", lambda t: t[:-50], "damaged"),
        ("captions_val2014.json", lambda t: t.replace('"caption"', '"text"', 1), "no 'caption'"),
        (
            "instances_val2014.json",
            lambda t: t.replace('"bench"', '"throne"'),
            "'throne' is not one of the 80",
        ),
        ("instances_val2014.json", lambda t: "[]", "damaged"),
        (
            "instances_val2014.json",
            lambda t: t.replace('"category_id": ', '"category_id": 9'),
            "does not list",
        ),
    ],
)
def test_damaged_annotations(made, tmp_path, name, change, said):
    """A torn download would be scored as an empty truth."""
    folder, *_ = made
    for path in folder.glob("*2014.json"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    with pytest.raises(ValueError, match=said):
        coco_truth.read_coco_truth(tmp_path)


def test_missing_annotations(tmp_path, made):
    """Which file is lacking, and where it comes from, would stay unsaid."""
    _, answers, *_ = made
    with pytest.raises(FileNotFoundError, match="instances_val2014"):
        score_file(answers, tmp_path, "chair")


def test_streaming_equals_loading(made):
    """Long lists are read piece by piece: a piece's end inside a value would lose it."""
    folder, *_ = made
    for path in sorted(folder.glob("*2014.json")):
        whole = json.loads(path.read_text())
        for size in (7, 64, 1 << 20):
            before, coco_truth._CHUNK = coco_truth._CHUNK, size
            try:
                if size == 7 and path.stat().st_size > 100_000:
                    continue
                found = {}
                for key, value in coco_truth._members(path, ("annotations", "images", "categories")):
                    found.setdefault(key, []).append(value)
            finally:
                coco_truth._CHUNK = before
            assert found == {k: v for k, v in whole.items() if k in ("annotations", "images", "categories")}


def test_one_foreign_answer_does_not_make_another_list(made, tmp_path):
    """One strange id would turn the check for missing questions off, and the rest pass for a whole run."""
    folder, _, rows, _ = made
    questions = folder / "chair-500.jsonl"
    listed = [{"question_id": r["question_id"], "image": r["image_id"]} for r in rows[:5]]
    questions.write_text("".join(json.dumps(each) + "\n" for each in listed))
    try:
        strange = write_answers(tmp_path / "a.jsonl", [*rows[:4], rows[4] | {"question_id": "mine"}])
        with pytest.raises(ValueError, match="1 answered questions are not in the truth of CHAIR: mine"):
            score_file(strange, folder, "chair", partial=True)
        k, other = [i for i, r in enumerate(rows) if str(r["image_id"]).endswith(".jpg")][:2]
        listed = [{"question_id": r["question_id"], "image": r["image_id"]} for r in rows[: k + 1]]
        questions.write_text("".join(json.dumps(each) + "\n" for each in listed))
        mixed = [*rows[:k], rows[k] | {"image_id": rows[other]["image_id"]}]
        with pytest.raises(ValueError, match=rf"line {k + 1}: question '{k}' is about .*, its answer about "):
            score_file(write_answers(tmp_path / "b.jsonl", mixed), folder, "chair")
        twice = [*rows[: k + 1], rows[0] | {"prompt": "And now?"}]
        with pytest.raises(ValueError, match=f"line {k + 2}: question '0' is answered in line 1 already"):
            score_file(write_answers(tmp_path / "c.jsonl", twice), folder, "chair")
    finally:
        questions.unlink()


def test_questions_beside_the_truth_must_be_answered(made, tmp_path):
    """A run that was cut short would be reported as the benchmark."""
    folder, _, rows, _ = made
    questions = folder / "chair-500.jsonl"
    questions.write_text("".join(json.dumps({"question_id": n}) + "\n" for n in range(3)))
    try:
        path = write_answers(tmp_path / "a.jsonl", rows[:2])
        with pytest.raises(ValueError, match="1 of 3 questions of CHAIR have no answer: 2; start"):
            score_file(path, folder, "chair")
        own = write_answers(tmp_path / "own.jsonl", [rows[0], row("mine", "A dog.", rows[1]["image_id"])])
        assert "own" in score_file(own, folder, "chair")[0].notes["questions"]
        assert len(chair.score(read_answers(path), folder, ScoringOptions(partial=True))[0].clusters) == 2
    finally:
        questions.unlink()


def test_phrases_of_one_answer_are_judged_apart(made):
    """Calibration and sweep would refuse every answer with two phrases, or mix their verdicts up."""
    from reverse.evaluation.detector.phrase_truth import BenchmarkTruth

    folder, _, rows, objects = made
    said = [(rows[n], f"a {word}") for n in (0, 1, 2) for word in ("dog", "cat", "sky", "car")]
    found = BenchmarkTruth(folder, "chair").judge(said)
    for (answer, phrase), verdict in zip(said, found, strict=True):
        digits = str(answer["image_id"]).rpartition("_")[2].removesuffix(".jpg")
        word = phrase.removeprefix("a ")
        expected = None if word == "sky" else word not in objects[int(digits)]
        assert verdict == expected, (answer, phrase)
    assert {True, None} <= set(found)
