"""The reasoning world on disk: resumable, and readable by the published readers of four benchmarks."""

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.drafts.draft_files import DraftIndex, read_drafts
from reverse.data.records.record_rules import check_shape
from reverse.data.scenes.reasoning import (
    draw_reasoning_picture,
    make_reasoning_picture,
    read_reasoning_question,
    reasoning_files,
    reasoning_formats,
    verify_rationale,
    write_reasoning,
)
from reverse.errors import DataError
from reverse.evaluation.benchmarks.graded.choices.scienceqa_benchmark import SCIENCEQA
from reverse.evaluation.benchmarks.graded.maths.chartqa_benchmark import CHARTQA
from reverse.evaluation.benchmarks.graded.maths.clevr_math_benchmark import CLEVR_MATH
from reverse.evaluation.benchmarks.graded.maths.tabmwp_benchmark import TABMWP
from reverse.grading import answer_key, grade
from reverse.tokens.spans import UN, find_problems, remove_tags
from reverse.training.views.view_files import find_view
from reverse.training.views.view_rows import ViewSettings

COUNT = 150  # three blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("reasoning") / "test"
    write_reasoning(out, "test", COUNT, questions=8)
    return out


@pytest.fixture(scope="module")
def records(folder):
    return list(read_drafts(folder / "drafts.jsonl"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def same_picture(path, index):
    drawn = draw_reasoning_picture(make_reasoning_picture("test", index))
    with Image.open(path) as image:
        return np.array_equal(np.asarray(image), drawn)


def true_text(record):
    return next(draft.text for draft in record.drafts if draft.made_by == "truth")


def test_drafts_hold_both_rationales_with_verified_steps(folder, records):
    """Training would have no errors to correct, or no truth to correct them with."""
    assert len(DraftIndex(folder / "drafts.jsonl")) == len(records) > 7 * COUNT
    verdicts = Counter()
    for record in records:
        annotator, truth = record.drafts
        assert (annotator.made_by, truth.made_by) == ("annotator", "truth")
        assert (annotator.role, truth.role, truth.parent) == ("rationale", "correction", 0)
        assert truth.verdict == "right" and truth.steps_are_right()
        verdicts[annotator.verdict] += 1
        if annotator.verdict == "wrong":
            assert not annotator.steps_are_right()
    assert verdicts["wrong"] > 150 and verdicts["unknown"] == 0
    assert same_picture(folder / records[0].images[0], 0)


def test_views_train_solving_on_the_annotator_and_corrections_on_truth(records):
    """A policy that learns the truth in solving leaves modes nothing to gain."""
    settings = ViewSettings(roles=("rationale",), right_share=1.0)
    for record in records[:300]:
        annotator, truth = record.drafts
        (solved,) = find_view("cot")(record, ViewSettings()).rows
        assert remove_tags(solved["conversations"][1]["value"]) == annotator.text
        (judged,) = find_view("judge")(record, settings).rows
        assert (UN in judged["conversations"][1]["value"]) == (not annotator.steps_are_right())
        for name in ("refine", "self_correct", "reflect"):
            (row,) = find_view(name)(record, settings).rows
            assert truth.answer in row["conversations"][-1]["value"]


def test_further_drafts_are_verified_from_the_file_alone(records):
    """Samples of a model could be judged only by who remembers how the file was made."""
    for record in records[:200]:
        question = read_reasoning_question(record)
        for draft in record.drafts:
            assert verify_rationale(draft.text, question) == draft.segments
        assert question.gold == record.gold
    with pytest.raises(DataError, match="reverse data reasoning"):
        read_reasoning_question(records[0].model_copy(update={"source": {}}))


def test_replay_records_are_published_instruct_records(folder):
    """`reverse train` and `reverse data check` read them."""
    rows = read(folder / "instruct.json")
    for row in rows:
        check_shape(row)
        answer = row["conversations"][1]["value"]
        assert not find_problems(answer) and UN not in answer and "<SPAN>" in answer
    assert sum(row["id"].endswith("-caption") for row in rows) == COUNT


def test_tabmwp_reads_back(folder):
    """A reader of the published files would find a missing field, picture or answer."""
    problems = read(folder / "tabmwp" / "problems_test.json")
    assert len(problems) > 150
    for row in problems.values():
        assert set(row) == {
            "question", "choices", "answer", "unit", "table_title", "table", "table_for_pd", "row_num",
            "column_num", "solution", "ques_type", "ans_type", "grade", "split",
        }  # fmt: skip
        assert grade(row["solution"], answer_key("tabmwp", row)).verdict == "right"
        assert (row["ques_type"] == "multi_choice") == bool(row["choices"])
        assert row["answer"] in (row["choices"] or [row["answer"]])
        lines = [line.split(" | ") for line in row["table"].split("\n")]
        assert len(lines) == row["row_num"] and {len(line) for line in lines} == {row["column_num"]}
        assert [list(row["table_for_pd"]), *zip(*row["table_for_pd"].values(), strict=True)] == [
            lines[0], *map(tuple, lines[1:])
        ]  # fmt: skip
    number = next(iter(problems))
    assert same_picture(folder / "tabmwp" / "tables" / f"{number}.png", (int(number) - 1) // 8)


def test_chartqa_reads_back(folder, records):
    """A reader of ChartQA's files would find a question without its picture, table or right answer."""
    truth = {(record.id.rsplit("-", 1)[0], record.question): true_text(record) for record in records}
    root = folder / "ChartQA Dataset" / "test"
    for part in ("human", "augmented"):
        rows = read(root / f"test_{part}.json")
        assert len(rows) > 50
        for row in rows:
            assert set(row) == {"imgname", "query", "label"}
            name = row["imgname"].removesuffix(".png")
            assert grade(truth[name, row["query"]], answer_key("chartqa", row)).verdict == "right"
            index = int(name.split("-")[1])
            with (root / "tables" / f"{name}.csv").open() as stream:
                table = list(csv.reader(stream))[1:]
            assert {colour: int(n) for colour, n in table} == make_reasoning_picture("test", index).truth
        assert same_picture(root / "png" / rows[0]["imgname"], int(rows[0]["imgname"][5:11]))


def test_clevr_math_reads_back(folder, records):
    """A reader of CLEVR-Math's files would find a missing field, or a program that gives another answer."""
    truth = {(record.id.rsplit("-", 1)[0], record.question): true_text(record) for record in records}
    content = read(folder / "clevr-math" / "clevr-math-test.json")
    assert set(content) == {"info", "questions"} and len(content["questions"]) > 200
    assert [row["question_index"] for row in content["questions"]] == list(range(len(content["questions"])))
    for row in content["questions"]:
        assert set(row) == {
            "split", "image_filename", "image_index", "image", "question", "program", "answer",
            "template_filename", "question_family_index", "question_index",
        }  # fmt: skip
        assert row["template_filename"] in ("addition.json", "subtraction.json")
        picture = make_reasoning_picture("test", row["image_index"])
        text = truth[picture.id, row["question"]]
        assert grade(text, answer_key("clevr-math", row)).verdict == "right"
        assert run_program(row["program"], picture.truth) == row["answer"]
    first = content["questions"][0]
    images = folder / "clevr-math" / "CLEVR_v1.0" / "images" / first["split"]
    assert same_picture(images / first["image_filename"], first["image_index"])


def run_program(program, truth):
    """The result of a program as CLEVR defines its functions."""
    values = []
    for node in program:
        kind, inputs = node["type"], [values[at] for at in node["inputs"]]
        if kind == "scene":
            values.append(truth)
        elif kind == "filter_shape":
            values.append(inputs[0][node["value_inputs"][0]])
        elif kind == "count":
            values.append(inputs[0])
        elif kind == "choose":
            values.append(int(node["value_inputs"][0]))
        else:
            assert kind in ("addition", "subtraction")
            values.append(inputs[0] + inputs[1] if kind == "addition" else inputs[0] - inputs[1])
    return values[-1]


def test_scienceqa_reads_back(folder):
    """A reader of ScienceQA's files would find a problem outside its split, or without its picture."""
    problems = read(folder / "scienceqa" / "problems.json")
    splits = read(folder / "scienceqa" / "pid_splits.json")
    assert splits == {"test": list(problems)} and len(problems) > 100
    kinds = Counter(row["task"] for row in problems.values())
    assert min(kinds["closed choice"], kinds["yes or no"]) > 40
    for number, row in problems.items():
        assert set(row) == {
            "question", "choices", "answer", "hint", "image", "task", "grade", "subject", "topic", "category",
            "skill", "lecture", "solution", "split",
        }  # fmt: skip
        assert grade(row["solution"], answer_key("scienceqa", row)).verdict == "right"
        assert (folder / "scienceqa" / "images" / row["split"] / number / row["image"]).exists()
    number = next(iter(problems))
    path = folder / "scienceqa" / "images" / "test" / number / "image.png"
    assert same_picture(path, (int(number) - 1) // 8)


@pytest.mark.parametrize("published", [TABMWP, CHARTQA, CLEVR_MATH, SCIENCEQA], ids=lambda each: each.name)
def test_the_readers_of_the_published_files_read_ours(folder, records, published):
    """Benchmarks that run on the real files would not run on these, or grade truth as wrong."""
    files = {
        name: next(folder / place for place in file.places if (folder / place).exists())
        for name, file in published.files.items()
    }
    images = next(folder / place for place in published.images if (folder / place).is_dir())
    truth = {}
    for record in records:
        index, text = int(record.id.split("-")[1]), record.question.split("\nA. ")[0]
        truth[draw_reasoning_picture(make_reasoning_picture("test", index)).tobytes(), text] = true_text(
            record
        )
    questions = list(published.read_questions(files))
    assert len(questions) > 100
    for question in questions:
        with Image.open(images / question["file"]) as image:
            picture = np.asarray(image).tobytes()
        text = truth[picture, question["prompt"].split("\nA. ")[0]]
        assert grade(text, question["key"]).verdict == "right"


def test_published_names_of_the_other_splits(tmp_path):
    """TabMWP calls its validation set dev, and no published reader knows a split named shift."""
    write_reasoning(tmp_path / "val", "val", 12, questions=8)
    write_reasoning(tmp_path / "shift", "shift", 12, questions=8)
    assert (tmp_path / "val" / "tabmwp" / "problems_dev.json").exists()
    assert (tmp_path / "val" / "clevr-math" / "clevr-math-val.json").exists()
    assert (tmp_path / "shift" / "clevr-math" / "clevr-math-test.json").exists()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, folder):
    """Ctrl-C in the middle of a block would spoil what comes after, or begin again from the start."""
    out, drawn = tmp_path / "out", []

    def draw(picture):
        drawn.append(picture.index)
        if len(drawn) == 100:
            raise KeyboardInterrupt
        return draw_reasoning_picture(picture)

    monkeypatch.setattr(reasoning_files, "draw_reasoning_picture", draw)
    with pytest.raises(KeyboardInterrupt):
        write_reasoning(out, "test", COUNT, questions=8)
    assert not (out / "manifest.json").exists()
    manifest = write_reasoning(out, "test", COUNT, questions=8)
    assert drawn[100] == 64  # the block that was done is not made again
    assert manifest == read(folder / "manifest.json")
    assert not list(out.rglob("*.tmp")) and not (out / "parts").exists()
    drawn.clear()
    assert write_reasoning(out, "test", COUNT, questions=8) == manifest and not drawn
    with pytest.raises(DataError, match="choose another directory"):
        write_reasoning(out, "test", COUNT, questions=1)


def test_workers_make_the_same_files(tmp_path, folder):
    """The number of processes would change the data of an experiment."""
    assert write_reasoning(tmp_path / "out", "test", COUNT, workers=2, questions=8) == read(
        folder / "manifest.json"
    )


def test_pictures_are_copied_where_there_are_no_links(tmp_path, monkeypatch, folder):
    """A file system without hard links would end the run."""

    def refuse(*_):
        raise OSError("no links")

    monkeypatch.setattr("os.link", refuse)
    write_reasoning(tmp_path / "out", "test", 10, questions=8)
    places = [
        place
        for index in range(10)
        for picture in [make_reasoning_picture("test", index)]
        for question in reasoning_files.make_reasoning_questions(picture)
        for place in reasoning_formats.find_published_places(picture, question)
    ]
    assert len(places) > 30
    for place in places:
        assert (tmp_path / "out" / place).read_bytes() == (folder / place).read_bytes()


@pytest.mark.parametrize("bad", [{"questions": 0}, {"questions": 9}, {"tables": -0.1}, {"count": 0}])
def test_bad_arguments_come_before_the_first_file(tmp_path, bad):
    """An empty folder would have to be removed by hand."""
    with pytest.raises(DataError, match="got"):
        write_reasoning(tmp_path / "out", "test", **{"count": 5, **bad})
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_world(tmp_path):
    """The only way to the data from a shell."""
    out = tmp_path / "out"
    words = [
        "data",
        "reasoning",
        str(out),
        "--split",
        "val",
        "--count",
        "6",
        "--questions",
        "1",
        "--tables",
        "1",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "6 pictures of val" in result.output
    records = list(read_drafts(out / "drafts.jsonl"))
    assert len(records) == 6 and {record.source["reasoning"]["picture"] for record in records} == {"table"}
    shutil.rmtree(out)
