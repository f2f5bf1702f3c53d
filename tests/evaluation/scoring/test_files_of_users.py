"""Benchmark files as users have them: byte-order marks, Latin-1, odd ids, null, equal names, stray files."""

import json

import pytest

from reverse.evaluation import benchmarks
from reverse.evaluation.reading import coco_truth
from reverse.evaluation.reading.answers import read_answers, read_run_answers
from reverse.evaluation.reading.file_lookup import Pictures
from reverse.evaluation.runs.scoring import score_file
from reverse.files.entries import read_entries
from tests.evaluation.scoring.making import row, write_answers

MARK = "\ufeff"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_truth, "cache_root", lambda: tmp_path / "cache")


def figures(scored):
    table, metrics = scored
    return {metric.name: float(metric.of(table.sums())) for metric in metrics}


def put(root, name, content, mark=""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, tuple):
        content = "".join(json.dumps(each) + "\n" for each in content)
    path.write_text(mark + (content if isinstance(content, str) else json.dumps(content)), encoding="utf-8")
    return path


def coco(root, images, instances, captions=(), mark="", changes=None):
    """Annotations: images (id, file name), instances (image, category) and captions (image, text)."""
    content = {
        "images": [{"id": identity, "file_name": name} for identity, name in images],
        "annotations": [{"image_id": image, "category_id": category} for image, category in instances],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    put(root, "instances.json", content | (changes or {}), mark)
    said = [{"image_id": image, "caption": text} for image, text in captions]
    put(root, "captions.json", {"annotations": said}, mark)


TWO = ((1, "a/1.jpg"), (2, "b/1.jpg"))


def chair(root, *answers):
    """Figures of answers (image, text)."""
    rows = [row(n, text, image) for n, (image, text) in enumerate(answers)]
    return figures(score_file(write_answers(root / "a.jsonl", rows), root, "chair"))


# ---------------------------------------------------------------------- byte-order marks and encodings
def test_marks_before_every_file(tmp_path):
    """A file that a Windows editor saved would be no JSON, or its first word another one."""
    coco(tmp_path, TWO, [(1, 18), (2, 17)], [(1, "a dog")], mark=MARK)
    path = put(tmp_path, "a.jsonl", (row(0, "A dog.", "a/1.jpg"), row(1, "A cat.", "b/1.jpg")), MARK)
    assert figures(score_file(path, tmp_path, "chair"))["chair_i"] == 0
    assert [answer["question_id"] for answer in read_run_answers(path).rows] == [0, 1]

    put(tmp_path, "amber/metadata/annotations.json",
        [{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]}], MARK)  # fmt: skip
    put(tmp_path, "amber/metadata/relation.json", {"dog": [], "cat": []}, MARK)
    put(tmp_path, "amber/metadata/safe_words.txt", "cat\r\nsky\r\n", MARK)  # the first word is a safe one
    path = write_answers(tmp_path / "g.jsonl", [row(1, "A dog and a cat.")])
    assert figures(score_file(path, tmp_path, "amber-g"))["chair"] == 0

    label = {"question_id": 1, "image": "1.jpg", "text": "Is it?", "label": "yes"}
    put(tmp_path, "pope/coco_pope/coco_pope_random.json", (label,), MARK)
    path = write_answers(tmp_path / "p.jsonl", [row(1, "Yes", "1.jpg", "Is it?")])
    assert figures(score_file(path, tmp_path, "pope"))["accuracy"] == 1

    text = "Is it red?\tYes\nIs it blue?\tNo\n"
    put(tmp_path, "MME/MME_Benchmark_release_version/color/1.txt", text, MARK)
    rows = [
        row("color/1.jpg", "Yes", "1.jpg", "Is it red?"),
        row("color/1.jpg", "No", "1.jpg", "Is it blue?"),
    ]
    assert figures(score_file(write_answers(tmp_path / "m.jsonl", rows), tmp_path, "mme"))["acc@color"] == 1


@pytest.mark.parametrize(
    ("name", "scored_as"),
    [
        ("instances.json", "chair"),
        ("captions.json", "chair"),
        ("amber/metadata/annotations.json", "amber-d"),
        ("pope/coco_pope/coco_pope_random.json", "pope"),
        ("MME/mme.jsonl", "mme"),
        ("mmhal/response_template.json", "mmhal"),
        ("haloquest/haloquest-eval.jsonl", "haloquest"),
    ],
)
def test_latin_1_names_file_and_line(tmp_path, name, scored_as):
    """Words in another encoding would be other words, or the error say nothing of where."""
    coco(tmp_path, TWO, [(1, 18)])
    path = put(tmp_path, name, "")
    path.write_bytes(b'{"a":\n "caf\xe9"}')
    answers = write_answers(tmp_path / "a.jsonl", [row(1, "Yes", "1.jpg", "?")])
    with pytest.raises(ValueError, match=rf"{path.name}, line 2: byte 0xe9 is not UTF-8.*iconv"):
        score_file(answers, tmp_path, scored_as, judge=object())


# ---------------------------------------------------------------------- ids
@pytest.mark.parametrize("identity", ["img42", 2**70, "0042", 42.0])
def test_ids_of_any_kind_match(tmp_path, identity):
    """Ids would not be comparable ('<' not supported), too large for a column, or another image's."""
    other = str(identity) if isinstance(identity, int) else 42 if identity in ("0042", 42.0) else identity
    coco(tmp_path, ((identity, "x.jpg"), (7, "y.jpg")), [(other, 18), ("7", 17)])
    found = chair(tmp_path, ("x.jpg", "A dog."), ("7", "A cat and a dog."))
    assert found["chair_i"] == pytest.approx(1 / 3)
    table = score_file(write_answers(tmp_path / "b.jsonl", [row(0, "A dog.", identity)]), tmp_path, "chair")[
        0
    ]
    assert table.columns["wrong"][0] == 0


@pytest.mark.parametrize("identity", [None, True, [1], {"a": 1}, 0.5, "", "x" * 501])
def test_what_is_no_id_is_refused_with_its_entry(tmp_path, identity):
    """All images without an id would be one."""
    coco(tmp_path, ((1, "x.jpg"), (identity, "y.jpg")), [(1, 18)])
    with pytest.raises(
        ValueError, match=r"instances.json, entry 2 of 'images': 'id' must be an id"
    ) as caught:
        chair(tmp_path, ("x.jpg", "A dog."))
    assert len(str(caught.value)) < 400


def test_numbers_and_texts_are_one_id_in_every_benchmark(tmp_path):
    """Another program writes "1" for 1; its answers would be none of the benchmark."""
    items = [{"id": str(n), "type": "discriminative-hallucination", "truth": "yes"} for n in (1, 2)]
    put(tmp_path, "amber/metadata/annotations.json", items)
    queries = [{"id": n, "image": f"{n}.jpg", "query": "Is it?"} for n in (1, 2)]
    put(tmp_path, "amber/questions/query_discriminative.jsonl", tuple(queries))
    (tmp_path / "images").mkdir()
    for n in (1, 2):
        put(tmp_path, f"images/{n}.jpg", "")
    asked = benchmarks.named("amber-d")[0].questions(tmp_path)
    assert [question.metadata["type"] for question in asked] == ["discriminative-hallucination"] * 2
    path = write_answers(tmp_path / "a.jsonl", [row(1, "Yes"), row("2", "Yes")])
    assert figures(score_file(path, tmp_path, "amber-d"))["accuracy"] == 1
    path.with_suffix(".run.json").write_text(json.dumps({"questions": {"ids": ["1", 2.0]}}))
    assert figures(score_file(path, tmp_path, "amber-d"))["accuracy"] == 1
    with pytest.raises(ValueError, match="answered in line 1 already"):
        read_answers(write_answers(tmp_path / "b.jsonl", [row(1, "Yes"), row("1", "No")]))


# ---------------------------------------------------------------------- null and other kinds of values
@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, "none", 3])
def test_lists_that_are_none(tmp_path, key, value):
    """Annotations that are null would be an empty truth: everything said would be wrong."""
    coco(tmp_path, TWO, [(1, 18)], changes={key: value})
    with pytest.raises(ValueError, match=rf"instances.json: '{key}' must be a list, got"):
        chair(tmp_path, ("a/1.jpg", "A dog."))


def test_lists_that_are_not_there(tmp_path):
    """A file without annotations would be an empty truth too."""
    coco(tmp_path, TWO, [(1, 18)])
    put(tmp_path, "captions.json", {"images": []})
    with pytest.raises(ValueError, match=r"captions.json has no list 'annotations'"):
        chair(tmp_path, ("a/1.jpg", "A dog."))


def test_images_that_nobody_annotated(tmp_path):
    """All that is said about them would be wrong."""
    coco(tmp_path, TWO, [(1, 18)])
    assert chair(tmp_path, ("a/1.jpg", "A dog."))["chair_i"] == 0
    with pytest.raises(ValueError, match=r"1 images have neither an instance nor a caption .*: 1\.jpg"):
        chair(tmp_path, ("a/1.jpg", "A dog."), ("b/1.jpg", "A cat."))


@pytest.mark.parametrize(
    ("name", "entry", "said"),
    [
        ("amber/metadata/annotations.json", {"id": 1, "type": "generative", "truth": None},
         "a list of texts"),
        ("amber/metadata/annotations.json", {"id": 1, "type": "generative", "truth": ["a"], "hallu": None},
         "'hallu' must be a list of texts, got null"),
        ("amber/metadata/annotations.json", {"id": 1, "type": None, "truth": ["a"]}, "'type' must be text"),
        ("pope/coco_pope/coco_pope_random.json", {"image": None, "text": "?", "label": "no"},
         "'image' must be"),
        ("pope/coco_pope/coco_pope_random.json", {"image": "a", "text": "?", "label": None},
         "'label' must be"),
        ("MME/mme.jsonl", {"question_id": "count/1", "category": None, "question": "?", "answer": "No"},
         "'category' must be text, got null"),
        ("mmhal/response_template.json", {"question": "?", "gt_answer": "a", "image_content": None},
         "'image_content' must be a list of texts, got null"),
        ("haloquest/haloquest-eval.jsonl", {"question_id": 1, "text": "?", "answer": None},
         "'answer' must be"),
        ("pope/coco_pope/coco_pope_random.json", None, "is not a JSON object but None"),
    ],
)  # fmt: skip
def test_values_of_another_kind_name_file_and_entry(tmp_path, name, entry, said):
    """A TypeError of ours would stand where the file and its entry belong."""
    good = {"id": 7, "question_id": "count/7", "type": "x", "truth": "yes", "image": "7.jpg", "text": "?",
            "label": "yes", "category": "count", "question": "?", "answer": "Yes",
            "gt_answer": "a"}  # fmt: skip
    path = put(tmp_path, name, (good, entry))
    benchmark = {"amber": "amber-d", "MME": "mme"}.get(name.split("/")[0], name.split("/")[0])
    answers = write_answers(tmp_path / "a.jsonl", [row(1, "Yes", "1.jpg", "?")])
    with pytest.raises(ValueError, match=rf"{path.name}, entry 2.*{said}"):
        score_file(answers, tmp_path, benchmark, judge=object())


# ---------------------------------------------------------------------- pictures of one name
def test_two_pictures_of_one_name_are_told_apart(tmp_path):
    """CHAIR gave 1.0 instead of 0.5: both answers were held against the picture read last."""
    coco(tmp_path, TWO, [(1, 18), (2, 17)])
    assert chair(tmp_path, ("a/1.jpg", "A dog."), ("b/1.jpg", "A dog."))["chair_i"] == 0.5
    rows = [row(0, "A dog.", "data/a/1.jpg"), row(1, "A dog.", "b\\1.jpg")]
    table, _ = score_file(write_answers(tmp_path / "a.jsonl", rows), tmp_path, "chair")
    assert len(set(table.clusters)) == 2 and list(table.columns["wrong"]) == [0, 1]
    with pytest.raises(ValueError, match=r"line 1: picture '1.jpg' may be any of a/1.jpg, b/1.jpg"):
        chair(tmp_path, ("1.jpg", "A dog."))


def test_pictures_that_the_truth_does_not_tell_apart(tmp_path):
    """Two pictures of the answers would be judged by the truth of one."""
    coco(tmp_path, ((1, "1.jpg"),), [(1, 18)])
    with pytest.raises(ValueError, match=r"line 2: pictures 'a/1.jpg' and 'b/1.jpg' would both be '1.jpg'"):
        chair(tmp_path, ("a/1.jpg", "A dog."), ("b/1.jpg", "A dog."))


def test_one_id_of_two_images(tmp_path):
    """Files whose ids each begin at 1 would add up to a truth of no image."""
    coco(tmp_path, ((1, "a.jpg"), ("1", "b.jpg")), [(1, 18)])
    with pytest.raises(
        ValueError, match=r"entry 2 of 'images': image id '1' is 'b.jpg' here and 'a.jpg' before"
    ):
        chair(tmp_path, ("a.jpg", "A dog."))


def test_labels_of_pictures_of_one_name(tmp_path):
    """POPE's labels of two pictures would be dealt out by the order of the answers."""
    labels = [{"image": f"{folder}/1.jpg", "text": "Is it?", "label": label}
              for folder, label in (("a", "yes"), ("b", "no"))]  # fmt: skip
    put(tmp_path, "coco_pope_random.json", tuple(labels))
    rows = [
        row(n, said, f"{folder}/1.jpg", "Is it?")
        for n, (folder, said) in enumerate((("b", "No"), ("a", "Yes")))
    ]
    found = figures(score_file(write_answers(tmp_path / "a.jsonl", rows), tmp_path, "pope"))
    assert found["accuracy"] == 1
    with pytest.raises(ValueError, match="may be any of"):
        score_file(write_answers(tmp_path / "b.jsonl", [rows[0] | {"image_id": "1.jpg"}]), tmp_path, "pope")


def test_names_that_mean_a_picture():
    """Folders before a name would hide it, or another name pass for it."""
    pictures = Pictures(["train/1.jpg", "val/1.jpg", "2.jpg"])
    assert pictures.find("/data/val/1.jpg") == "val/1.jpg" and pictures.find("./x\\2.jpg") == "2.jpg"
    assert pictures.find("12.jpg") is None and pictures.find("") is None
    with pytest.raises(ValueError, match="may be any of"):
        pictures.find("test/1.jpg")


# ---------------------------------------------------------------------- stray files
def mme_release(root):
    release = root / "MME/MME_Benchmark_release_version"
    for n in (1, 2):
        put(release, f"existence/{n}.jpg", "")
        put(release, f"existence/{n}.txt", "Is it red?\tYes\nIs it blue?\tNo\n")
    put(release, "eval_tool/readme.txt", "Run calculation.py\tno\nwith --results_dir\tyes\n")
    put(release, "eval_tool/Your_Results/existence.txt", "1.jpg\tIs it red?\tYes\tYes\n")
    put(release, "existence/notes.txt", "taken in May\tby me\n")
    put(root, "MME/readme.txt", "a\tb\n")
    put(root, "amber/safe_words.txt", "sky\tyes\n")
    return release


def test_stray_files_are_no_questions(tmp_path):
    """The tool that MME is published with lies among its tasks, and its notes became questions."""
    release = mme_release(tmp_path)
    asked = benchmarks.named("mme")[0].questions(tmp_path)
    assert [question.id for question in asked] == [f"existence/{n}.jpg#{k}" for n in (1, 2) for k in (1, 2)]
    rows = [row(q.id, ("Yes", "No")[n % 2], q.image, q.prompt) for n, q in enumerate(asked)]
    path = write_answers(tmp_path / "a.jsonl", rows)
    for truth in (tmp_path, tmp_path / "MME", release):
        table, metrics = score_file(path, truth)
        assert table.benchmark == "mme" and figures((table, metrics))["score@existence"] == 200
        assert table.notes["tasks_left_out"] == []


def test_scoring_looks_where_running_does(tmp_path):
    """Answers to one file would be scored against another that lies beside it."""
    mme_release(tmp_path)
    line = {
        "question_id": "count/1.jpg",
        "image": "1.jpg",
        "category": "count",
        "question": "?",
        "answer": "Yes",
    }
    put(tmp_path, "MME/mme.jsonl", (line, line | {"question": "??", "answer": "No"}))
    put(tmp_path, "MME/MME_Benchmark_release_version/1.jpg", "")
    put(tmp_path, "mme.jsonl", "[]")  # not where it is published
    (tmp_path / "MME/data").mkdir()  # empty
    asked = benchmarks.named("mme")[0].questions(tmp_path)
    rows = [row(q.id, "Yes", q.image, q.prompt) for q in asked]
    assert figures(score_file(write_answers(tmp_path / "a.jsonl", rows), tmp_path))["acc@count"] == 0.5
    (tmp_path / "MME/mme.jsonl").unlink()
    assert len(benchmarks.named("mme")[0].questions(tmp_path)) == 4  # the empty folder holds none

    folder = "chair_mscoco/coco/annotations"
    coco(tmp_path / folder, ((1, "1.jpg"),), [(1, 18)])
    coco(tmp_path, ((1, "1.jpg"),), [(1, 17)])  # an older export at the root
    put(tmp_path, f"{folder}/captions_val2014_fakecap_results.json", [{"image_id": 1, "caption": "a cat"}])
    assert chair(tmp_path, ("1.jpg", "A dog."))["chair_i"] == 0


def test_entries_in_every_shape(tmp_path):
    """A list over many lines, lines, or one object alone would be read as something else."""
    for content in ('[\n {"a": 1},\n {"a": 2}\n]', '{"a": 1}\n\n{"a": 2}\n', '[{"a": 1}, {"a": 2}]'):
        assert [entry.row["a"] for entry in read_entries(put(tmp_path, "x.json", content))] == [1, 2]
    assert [e.row for e in read_entries(put(tmp_path, "x.json", '{\n"a": 1\n}'))] == [{"a": 1}]
    for content in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": 1}\n{"a": '):
        with pytest.raises(ValueError, match=r"x\.json is damaged") as caught:
            read_entries(put(tmp_path, "x.json", content))
        assert len(str(caught.value)) < 600
