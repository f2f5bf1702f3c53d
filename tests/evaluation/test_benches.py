"""The benchmarks' files: read as published, and written about scenes with a truth that holds."""

import json
import re
from collections import Counter

import pytest
from PIL import Image

from reverse.data.scenes import find_objects, make_scene
from reverse.data.scenes.benchmark_files import find_amber_noun, make_pope_questions, write_benchmarks
from reverse.data.scenes.object_names import NUMBERS
from reverse.data.scenes.themes import OBJECT_NAMES, THEMES
from reverse.evaluation import benchmarks
from reverse.evaluation.benchmarks.file_table import tabulate_files
from reverse.files.entries import read_entries

COUNT = 48
SUFFIX = "\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def scenes_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_benchmarks(root, "test", COUNT)
    return root


@pytest.fixture(scope="module")
def scenes():
    return {f"test-{i:06d}.png": make_scene("test", i) for i in range(COUNT)}


def bench(name):
    return benchmarks.named(name)[0]


def read_rows(path):
    return [entry.row for entry in read_entries(path)]


def put(root, place, content):
    """A file: bytes, text, a JSON list, or (from a tuple) JSON lines."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, tuple):
        content = "".join(json.dumps(row) + "\n" for row in content)
    elif isinstance(content, list):
        content = json.dumps(content)
    path.write_text(content, encoding="utf-8")


def picture(root, place):
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)


def test_names_and_groups():
    """`reverse eval all` would leave a benchmark out, or ask one twice."""
    assert [b.name for b in benchmarks.named("POPE", "amber", "pope_all")] == [
        "pope", "amber-g", "amber-d", "pope-aokvqa", "pope-gqa",
    ]  # fmt: skip
    named = benchmarks.named("all", "mme", "graded", "reasoning")
    assert {b.name for b in named} == set(benchmarks.BENCHMARKS)
    with pytest.raises(ValueError, match=r"no benchmark 'popo': known are chair, "):
        benchmarks.named("popo")


def test_defaults_are_those_of_the_paper():
    """Yes/no questions would be checked at the captions' threshold, captions cut short."""
    kinds = {b.name: b.kind for b in benchmarks.BENCHMARKS.values()}
    assert {name for name, kind in kinds.items() if kind == "open"} == {"mmhal", "haloquest"}
    assert {name for name, kind in kinds.items() if kind == "caption"} == {"chair", "amber-g"}
    assert all(b.max_new_tokens == 1024 for b in benchmarks.BENCHMARKS.values() if b.kind != "yes_no")


@pytest.mark.parametrize("name", [b.name for b in benchmarks.named("all", "mme")])
def test_every_benchmark_can_be_read_from_scenes(scenes_root, name):
    """One of them could not be tried offline."""
    questions = bench(name).questions(scenes_root)
    assert len({str(q.id) for q in questions}) == len(questions) >= COUNT
    assert all(q.source.is_file() and q.prompt.strip() for q in questions)
    assert bench(name).compare_with_published(scenes_root) == "scenes"
    assert not bench(name).missing(scenes_root, ("run",))
    some = bench(name).questions(scenes_root, 4)
    assert len({q.image for q in some}) == 4
    everything = Counter(q.image for q in questions)
    assert all(everything[image] == many for image, many in Counter(q.image for q in some).items())


def test_pope_labels_and_rules(scenes_root, scenes):
    """A wrong label would punish right answers; a wrong rule would make adversarial questions easy."""
    often = Counter(name for scene in scenes.values() for name in scene.truth)
    positives = {}
    for setting in ("random", "popular", "adversarial"):
        rows = read_rows(scenes_root / f"pope/coco_pope/coco_pope_{setting}.json")
        assert [row["question_id"] for row in rows] == list(range(1, len(rows) + 1))
        asked = Counter(row["image"] for row in rows)
        assert set(asked.values()) == {6}
        assert set(asked) == {image for image, scene in scenes.items() if len(scene.truth) >= 3}
        named = [(row, find_objects(row["text"])[0].name) for row in rows]
        for row, name in named:
            assert (name in scenes[row["image"]].truth) == (row["label"] == "yes")
        positives[setting] = [pair[1] for pair in named if pair[0]["label"] == "yes"]
        for image in asked:
            absent = [name for row, name in named if row["image"] == image and row["label"] == "no"]
            assert len(set(absent)) == 3
            if setting == "popular":
                others = [n for n in OBJECT_NAMES if n not in scenes[image].truth and n not in absent]
                assert min(often[n] for n in absent) >= max(often[n] for n in others)
            if setting == "adversarial":
                present = [name for row, name in named if row["image"] == image and row["label"] == "yes"]
                used = set(scenes[image].truth)
                for there, chosen in zip(present, absent, strict=True):
                    together = Counter(n for s in scenes.values() if there in s.truth for n in s.truth)
                    assert together[chosen] == max(together[n] for n in OBJECT_NAMES if n not in used)
                    used.add(chosen)
    assert positives["random"] == positives["popular"] == positives["adversarial"]


def test_pope_is_seeded(scenes):
    """The A-OKVQA and GQA files would ask the same as COCO's."""
    first, second = (make_pope_questions(list(scenes.values()), "random", seed) for seed in (0, 1))
    assert first != second and len(first) == len(second)
    assert first == make_pope_questions(list(scenes.values()), "random", 0)


def test_amber_annotations_fit_their_queries(scenes_root, scenes):
    """The scorer, which finds an annotation by its place in the list, would read another picture's."""
    annotations = json.loads((scenes_root / "amber/metadata/annotations.json").read_text())
    assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
    for query in read_rows(scenes_root / "amber/questions/query_generative.jsonl"):
        scene, annotation = scenes[query["image"]], annotations[query["id"] - 1]
        assert set(annotation["truth"]) == {find_amber_noun(name) for name in scene.truth}
        assert annotation["hallu"] and not set(annotation["hallu"]) & set(annotation["truth"])
        assert set(annotation["hallu"]) <= {find_amber_noun(n) for n in THEMES[scene.theme].objects}
    kinds = Counter()
    for query in read_rows(scenes_root / "amber/questions/query_discriminative.jsonl"):
        scene, annotation = scenes[query["image"]], annotations[query["id"] - 1]
        kinds[annotation["type"], annotation["truth"]] += 1
        check_yes_no(scene, query["query"], annotation["truth"])
    assert len(kinds) == 8  # four types, both answers
    words = set(json.loads((scenes_root / "amber/metadata/relation.json").read_text()))
    assert {w for a in annotations for w in a.get("hallu", [])} <= words
    safe = (scenes_root / "amber/metadata/safe_words.txt").read_text().split()
    assert "picture" in safe and not set(safe) & words
    counters = (scenes_root / "amber/metadata/metrics.txt").read_text().splitlines()
    assert "chair_num=0.001" in counters and "ha_qa_ans_no_score=0" in counters and len(counters) == 44


def check_yes_no(scene, question, answer):
    """The truth of a question, read from its words."""
    text = question.lower().rstrip("?")
    if match := re.fullmatch(r"is the ground (\w+)", text):
        right = match[1] == scene.ground.colour
    elif match := re.fullmatch(r"(?:is|are) the (.+) to the left of the (.+)", text):
        places = [[t.x for t in scene.objects if t.name == name] for name in match.groups()]
        assert [len(xs) for xs in places] == [1, 1]
        right = places[0][0] < places[1][0]
    elif match := re.fullmatch(r"(?:is|are) the (.+) (on|at|in) the (left|right|top|bottom|middle)", text):
        (thing,) = (t for t in scene.objects if t.name == match[1])
        dx, dy = thing.x / scene.side - 0.5, thing.y / scene.side - 0.5
        toward = {"left": -dx, "right": dx, "top": -dy, "bottom": dy}
        toward["middle"] = 0.19 - max(abs(dx), abs(dy))
        central = max(abs(dx), abs(dy)) < 0.13  # in the middle, and so on no side
        right = match[3] == "middle" if central else toward[match[3]] > 0.06
    else:
        (mention,) = find_objects(text)
        counted = any(f" {word} " in f" {text} " for word in NUMBERS[1:])
        there = scene.truth.get(mention.name, 0)
        right = there == mention.count if counted else there > 0
    assert answer.lower() == ("yes" if right else "no"), (scene.id, question, scene.truth)


def test_mme_pairs(scenes_root, scenes):
    """Accuracy+ would have no meaning: a picture needs one question to be answered yes and one no."""
    rows = read_rows(scenes_root / "MME/mme.jsonl")
    assert [row["answer"] for row in rows] == ["Yes", "No"] * COUNT
    assert {row["category"] for row in rows} == {"existence", "count", "position", "color"}
    request = " Please answer yes or no."  # the published scorer finds no question without it
    assert all(row["question"].endswith(request) for row in rows)
    for row in rows:
        question = row["question"].removesuffix(request)
        check_yes_no(scenes[row["image"]], question, row["answer"])
    questions = bench("mme-hall").questions(scenes_root)
    # asked as the bundled models have learnt to be asked: with the request they say anything
    assert not any(request in question.prompt for question in questions)
    assert [q.id for q in questions[:2]] == [f"{rows[0]['question_id']}#1", f"{rows[0]['question_id']}#2"]
    assert questions[0].metadata == {"category": rows[0]["category"], "label": "Yes"}


def test_open_questions_have_types_and_references(scenes_root, scenes):
    """A judge would have nothing to compare with, and no false premise to notice."""
    template = read_rows(scenes_root / "mmhal/response_template.json")
    assert len({row["question_type"] for row in template}) == 8
    for row in template:
        scene = scenes[row["image_src"]]
        assert row["question"].endswith((".", "?")) and row["gt_answer"].endswith(".")
        assert all(m.name in scene.truth for m in find_objects(row["gt_answer"]))
        if row["question_type"] == "adversarial":
            assert find_objects(row["question"])[0].name not in scene.truth
    quest = read_rows(scenes_root / "haloquest/haloquest-eval.jsonl")
    kinds = Counter(row["hallucination_type"] for row in quest)
    assert kinds == dict.fromkeys(
        ("false premise", "visually challenging", "insufficient context"), COUNT // 3
    )
    for row in quest:
        asked = find_objects(row["text"])[0].name in scenes[row["image"]].truth
        assert asked == (row["hallucination_type"] != "false premise")
        assert "reference" not in row and row["answer"]
    assert "answer" not in bench("haloquest").questions(scenes_root)[0].metadata


def test_scenes_benchmarks_are_the_same_every_time(scenes_root, tmp_path):
    """Two machines would measure on different questions; a second call would mix two sets."""
    manifest = write_benchmarks(tmp_path / "again", "test", COUNT)
    assert manifest == json.loads((scenes_root / "benches.json").read_text())
    assert write_benchmarks(scenes_root, "test", COUNT) == manifest
    with pytest.raises(ValueError, match="another directory"):
        write_benchmarks(scenes_root, "test", COUNT + 1)


def test_amber_ids_are_checked_by_hash(tmp_path):
    """A set with a query missing would pass for the published one."""
    queries = [{"id": i, "image": f"AMBER_{i}.jpg", "query": "Describe this image."} for i in range(1, 1005)]
    put(tmp_path, "amber/query/query_generative.json", queries)
    assert bench("amber-g").compare_with_published(tmp_path) == "the published ids"
    put(tmp_path, "amber/query/query_generative.json", queries[:-1])
    assert bench("amber-g").compare_with_published(tmp_path) == "NOT the published ids"
    for i in (1, 2, 3):
        picture(tmp_path, f"amber/image/AMBER_{i}.jpg")
    with pytest.raises(FileNotFoundError, match=r"1000 of 1003 pictures of AMBER-G .*AMBER_4.jpg"):
        bench("amber-g").questions(tmp_path)
    assert [q.image for q in bench("amber-g").questions(tmp_path, 3)] == [f"AMBER_{i}.jpg" for i in (1, 2, 3)]


def pope_files(root, texts=("Is there a dog?", "Is there a cat?")):
    for setting in ("random", "popular", "adversarial"):
        rows = tuple(
            {"question_id": i, "image": "a.jpg", "text": text, "label": label}
            for i, (text, label) in enumerate(zip(texts, ("yes", "no"), strict=True), 1)
        )
        put(root, f"pope/coco_pope/coco_pope_{setting}.json", rows)
    picture(root, "pope/coco/val2014/a.jpg")


def test_pope_from_either_form(tmp_path):
    """Who has POPE's own files, or LLaVA's, could not run; or labels would belong to other questions."""
    pope_files(tmp_path)
    own = bench("pope").questions(tmp_path)
    assert [q.id for q in own][:3] == ["random/1", "random/2", "popular/1"]
    assert own[0].prompt == "Is there a dog?" + SUFFIX
    llava = tuple(
        {"question_id": i, "image": "a.jpg", "text": ("Is there a dog?", "Is there a cat?")[i % 2] + SUFFIX,
         "category": ("random", "popular", "adversarial")[i // 2]}
        for i in range(6)
    )  # fmt: skip
    put(tmp_path, "pope/llava_pope_test.jsonl", llava)
    theirs = bench("pope").questions(tmp_path)
    assert [(q.prompt, q.metadata) for q in theirs] == [(q.prompt, q.metadata) for q in own]
    assert [q.id for q in theirs] == list(range(6))
    put(tmp_path, "pope/llava_pope_test.jsonl", tuple(row | {"image": "b.jpg"} for row in llava))
    with pytest.raises(ValueError, match="do not ask the same"):
        bench("pope").questions(tmp_path)


def test_mme_from_lines_parquet_and_folders(tmp_path):
    """Who has MME in another of its three forms could not run, or would be asked other questions."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    asked = [("existence", "1.jpg"), ("landmark", "2.jpg")]
    roots = {name: tmp_path / name for name in ("lines", "parquet", "folders")}
    lines, table = [], []
    for task, image in asked:
        pairs = [
            ("Is it red? Please answer yes or no.", "Yes"),
            ("Is it blue? Please answer yes or no.", "No"),
        ]
        for question, answer in pairs:
            row = {"question_id": f"{task}/{image}", "question": question, "answer": answer, "category": task}
            lines.append(row | {"image": f"{task}/{image}"})
        picture(roots["lines"], f"MME/images/{task}/{image}")
        data = (roots["lines"] / f"MME/images/{task}/{image}").read_bytes()
        table += [row | {"image": {"bytes": data, "path": image}} for row in lines[-2:]]
        release = "MME/MME_Benchmark_release_version"
        folder = f"{release}/{task}"
        apart = task == "landmark"
        picture(roots["folders"], f"{folder}/images/{image}" if apart else f"{folder}/{image}")
        text = "".join(f"{question}\t{answer}\n" for question, answer in pairs)
        place = f"{folder}/questions_answers_YN/2.txt" if apart else f"{folder}/1.txt"
        put(roots["folders"], place, text)
    put(roots["lines"], "MME/mme.jsonl", tuple(lines))
    (roots["parquet"] / "MME/data").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(table), roots["parquet"] / "MME/data/test-0.parquet", row_group_size=3
    )
    found = {name: bench("mme").questions(root) for name, root in roots.items()}
    seen = {name: [(q.id, q.prompt, q.metadata) for q in qs] for name, qs in found.items()}
    assert seen["lines"] == seen["parquet"] == seen["folders"] and len(seen["lines"]) == 4
    assert found["parquet"][3].picture() == data
    assert [q.metadata["category"] for q in bench("mme-hall").questions(roots["parquet"])] == [
        "existence"
    ] * 2


def test_mmhal_pictures_are_the_last_part_of_their_address(tmp_path):
    """The template names addresses; no picture would be found."""
    row = {"question_type": "attribute", "image_src": "https://example.org/a/b/17.jpg", "question": "Which?",
           "gt_answer": "Red.", "model_answer": ""}  # fmt: skip
    put(tmp_path, "mmhal/response_template.json", [row])
    picture(tmp_path, "mmhal/images/17.jpg")
    (question,) = bench("mmhal").questions(tmp_path)
    assert (question.id, question.image, question.metadata) == (0, "17.jpg", {"question_type": "attribute"})


@pytest.mark.parametrize("image", ["../../secret.png", "/etc/passwd", "link.png"])
def test_pictures_outside_their_folder_are_refused(tmp_path, image):
    """A file of questions from anywhere could have any file of the machine read."""
    picture(tmp_path, "secret.png")
    folder = tmp_path / "root/chair_mscoco/coco/val2014"
    folder.mkdir(parents=True)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    put(tmp_path / "root", "chair_mscoco/chair-500.jsonl", ({"question_id": 1, "image": image, "text": "?"},))
    with pytest.raises(ValueError, match=r"leaves|must be relative"):
        bench("chair").questions(tmp_path / "root")


def test_missing_and_damaged_files(tmp_path):
    """A user would see a KeyError of ours instead of what to fetch."""
    with pytest.raises(FileNotFoundError, match=r"chair_mscoco/chair-500.jsonl \(500 questions\)"):
        bench("chair").questions(tmp_path)
    row = {"question_id": 1, "image": "a.jpg", "text": "?"}
    put(tmp_path, "chair_mscoco/chair-500.jsonl", (row,))
    with pytest.raises(FileNotFoundError, match="no pictures under"):
        bench("chair").questions(tmp_path)
    picture(tmp_path, "chair_mscoco/coco/val2014/a.jpg")
    assert len(bench("chair").questions(tmp_path)) == 1
    assert bench("chair").compare_with_published(tmp_path) == "1 questions, NOT the published 500"
    put(tmp_path, "chair_mscoco/chair-500.jsonl", (row, row))
    with pytest.raises(ValueError, match="id '1' occurs twice"):
        bench("chair").questions(tmp_path)
    put(tmp_path, "chair_mscoco/chair-500.jsonl", json.dumps(row) + '\n{"question_id": 2, ')
    with pytest.raises(ValueError, match="damaged in line 2"):
        bench("chair").questions(tmp_path)
    put(tmp_path, "chair_mscoco/chair-500.jsonl", ({"question_id": 1, "image": "a.jpg"},))
    with pytest.raises(ValueError, match="no text or query or question"):
        bench("chair").questions(tmp_path)
    put(tmp_path, "chair_mscoco/chair-500.jsonl", "")
    with pytest.raises(ValueError, match="no questions"):
        bench("chair").questions(tmp_path)


def test_where_says_what_is_there(tmp_path, scenes_root):
    """A user would have to read our source to know what to put where."""
    import io

    from rich.console import Console

    def shown(root, *names):
        table, ready = tabulate_files(benchmarks.named(*names), root)
        screen = io.StringIO()
        Console(file=screen, width=200, color_system=None).print(table)
        return screen.getvalue(), ready

    text, ready = shown(tmp_path, "all")
    assert "chair_mscoco/chair-500.jsonl" in text and "missing" in text and not ready
    text, ready = shown(scenes_root, "all", "mme")
    assert "missing" not in text and ready == [b.name for b in benchmarks.named("all", "mme")]
    pope_files(tmp_path)
    text, ready = shown(tmp_path, "pope")
    assert ready == ["pope"] and "not needed" in text
