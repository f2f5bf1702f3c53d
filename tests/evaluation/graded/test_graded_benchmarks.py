"""The graded benchmarks: questions from their published files, prompts, keys, scores, and bad files."""

import io
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from reverse.cli import app
from reverse.errors import DataError, MissingFileError
from reverse.evaluation import benchmarks
from reverse.evaluation.benchmarks import published_rows
from reverse.evaluation.benchmarks.published_rows import read_published
from reverse.evaluation.runs.scoring import score_file
from reverse.grading import PRESETS
from tests.evaluation.graded.published import (
    QUESTIONS,
    RIGHT,
    WRITERS,
    WRONG,
    picture,
    write_json,
    write_parquet,
)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for write in WRITERS.values():
        write(root)
    return root


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def bench(name):
    return benchmarks.named_one(name)


def test_every_preset_has_its_benchmark():
    """A benchmark that can be graded could not be run."""
    assert {each.name for each in benchmarks.named("graded")} == set(PRESETS) == set(WRITERS)
    assert not any(each.in_all for each in benchmarks.named("graded"))


@pytest.mark.parametrize("name", list(WRITERS))
def test_questions_are_read_with_pictures_and_keys(root, name):
    """Questions would be asked about no picture, or their answers graded as another kind."""
    questions = bench(name).questions(root)
    assert len(questions) == QUESTIONS[name] == len({str(each.id) for each in questions})
    for question in questions:
        given = question.picture()
        for each in given if isinstance(given, list) else [given]:
            with Image.open(io.BytesIO(each) if isinstance(each, bytes) else each) as image:
                assert image.format == "PNG"
        assert question.key is not None and "<image" not in question.prompt
        if question.key.kind == "choice":
            assert question.prompt.endswith("Answer with the letter of the right option.")
            assert all(choice in question.prompt for choice in question.key.choices)
    assert not bench(name).missing(root, ("run", "score"))


@pytest.mark.parametrize("name", list(WRITERS))
def test_answers_are_scored_with_intervals_and_reasons(root, name, tmp_path):
    """A right answer would count as wrong, or one that cannot be read as right."""
    questions = bench(name).questions(root)
    told = [RIGHT[name]] + [""] * (len(questions) - 1)
    for texts, right in ((told, 1), ([WRONG[name], *told[1:]], 0)):
        path = tmp_path / f"{right}.jsonl"
        rows = [
            {"question_id": question.id, "text": text}
            for question, text in zip(questions, texts, strict=True)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        table, metrics = score_file(path, root, name)
        figures = {metric.name: float(metric.of(table.sums())) for metric in metrics}
        assert figures["accuracy"] == pytest.approx(right / len(questions))
        assert figures["unknown"] == pytest.approx(1 - 1 / len(questions))
        if len(questions) > 1:
            assert table.notes["not_graded"] == {"the text is empty": len(questions) - 1}
    assert set(table.clusters) == {question.image for question in questions}


def test_questions_about_one_picture_are_one_cluster(root):
    """Intervals would be too narrow: shuffled copies of a question are not questions of their own."""
    for name in ("mmbench", "clevr-math", "mathverse", "mathvista"):
        assert len({question.image for question in bench(name).questions(root)}) == 1


def test_special_wordings(root):
    """Marks of pictures would be taken for pictures, or names of people be lost."""
    (vcr,) = bench("vcr").questions(root)
    assert vcr.prompt.startswith(
        "Why does person2 hold cup3?\nA. person2 is thirsty.\nB. person1 didn't come."
    )
    first = bench("mmmu").questions(root)[0]
    assert first.prompt.startswith("Which fits (picture 1)?\nA. (picture 2)\nB. none")
    assert len(first.picture()) == 2 and first.metadata == {"group": "Art"}
    (snail,) = bench("olympiadbench").questions(root)
    assert [each.rpartition("/")[2] for each in snail.picture()] == ["31.jpg", "32.jpg"]
    assert bench("mathverse").questions(root)[1].prompt.startswith("Answer the question in the picture.")
    assert "in $." in bench("tabmwp").questions(root)[0].prompt
    assert (
        bench("mmbench").questions(root)[0].prompt.startswith('The hint\nhas two lines, and a "word"\nWhich')
    )


def test_the_reasoning_world_is_asked_as_it_was_learnt(tmp_path):
    """Its models would be asked in words that they never saw, and its steps not be verified."""
    from reverse.data.scenes.reasoning import write_reasoning

    write_reasoning(tmp_path, "test", 16)
    for name in ("tabmwp", "chartqa", "clevr-math", "scienceqa", "reasoning"):
        questions = bench(name).questions(tmp_path)
        assert questions and not any("Answer" in question.prompt for question in questions)
        assert bench(name).compare_with_published(tmp_path) == "scenes"
    first = questions[0]
    verdicts = [segment.verdict for segment in first.verify("there are 99 dogs. Answer: 99")]
    assert verdicts == ["wrong"] * 4
    (tmp_path / "drafts.jsonl").write_text('{"version": 1, "id": "a", "question": "?"}\n')
    with pytest.raises(DataError, match=r"drafts\.jsonl: record 'a' has no right answer or no picture"):
        bench("reasoning").questions(tmp_path)


def test_where_lists_them_and_says_which_are_ready(root):
    """Users would have to guess where published files go."""
    shown = run("eval", "--where", "graded", "--data", root)
    assert all(name in shown.rpartition("ready to run:")[2] for name in WRITERS)
    assert "tabmwp/problems_test.json" in run("eval", "--where", "--data", root / "nothing")


def test_a_run_grades_and_scores(root, tmp_path):
    """Verdicts would be lost between a run and its score."""
    out = tmp_path / "out"
    run("eval", "chartqa", "olympiadbench", "mmbench", "--model", "tiny-qwen", "--data", root, "--out", out,
        "--max-new-tokens", 8, "--score")  # fmt: skip
    for name in ("chartqa", "olympiadbench", "mmbench"):
        rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == QUESTIONS[name]
        assert all(
            row["grade"]["verdict"] in ("right", "wrong", "unknown") and row["grade"]["reason"]
            for row in rows
        )
        report = json.loads(run("score", out / f"{name}.jsonl", "--truth", root, "--json"))
        right = sum(row["grade"]["verdict"] == "right" for row in rows)
        assert report["metrics"]["accuracy"]["value"] == pytest.approx(right / len(rows))


# ---------------------------------------------------------------------- bad files
def test_a_missing_picture_is_named(root, tmp_path):
    """The run would end in the middle, hours later."""
    WRITERS["tabmwp"](tmp_path)
    (tmp_path / "tabmwp/tables/9.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 2 pictures of TabMWP are not in .*tables: 9\.png"):
        bench("tabmwp").questions(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("tabmwp", {"7": {"question": "?"}}, r"problems_test\.json, key '7': .*needs the field 'answer'"),
        ("tabmwp", {"7": {"question": "?", "answer": None}}, r"key '7' has no answer"),
        ("tabmwp", {"7": {"question": "?", "answer": "x", "choices": ["x"]}}, r"key '7': .*at least two"),
        ("tabmwp", [1], r"problems_test\.json, entry 1 is not a JSON object but 1"),
        ("clevr-math", {"questions": [{"answer": 3, "image_filename": "a"}]}, r"entry 1 has no 'question'"),
        ("clevr-math", {"questions": [{"question": "?", "answer": 3, "image_filename": "../a"}]}, "leaves"),
        ("aokvqa", [{"question_id": "a", "image_id": 1, "question": "?", "choices": 3,
                     "correct_choice_idx": 0}],
         r"val\.json, entry 1: .*list of options was expected, got 3"),
        ("olympiadbench", [{"id": 1, "question": "?", "final_answer": ["1"]}], r"entry 1: .*has no picture"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_remedy(tmp_path, name, value, told):
    """Users would have to search a file of thousands of rows."""
    WRITERS[name](tmp_path)
    file = next(iter(bench(name).found(tmp_path).values()))
    write_json(file, value)
    with pytest.raises(DataError, match=told):
        bench(name).questions(tmp_path)


def test_bad_tsv_cells_are_named(tmp_path):
    """A cut download would give pictures of other questions."""
    WRITERS["mmbench"](tmp_path)
    path = tmp_path / "mmbench/MMBench_DEV_EN.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + "3\tcut off\n")
    with pytest.raises(DataError, match=r"MMBench_DEV_EN\.tsv, line 5 has 2 cells, the first line names 10"):
        list(read_published(path))
    bad = (
        lines[-1].rpartition("\t")[0].replace("1000241", "7")
        + "\tno picture at all: this is a sentence, not one\n"
    )
    path.write_text("".join(lines) + bad)
    *_, last = read_published(path)
    with pytest.raises(DataError, match=r"line 5: 'image' is not base64 and not an index of a row"):
        last.pictures["image"].read()
    assert [row.pictures["image"].read() == picture() for row in list(read_published(path))[:2]] == [
        True,
        True,
    ]


def test_bad_parquet_files_are_named(tmp_path, monkeypatch):
    """pyarrow's own errors name no file; a hostile file would fill the memory."""
    path = tmp_path / "mmstar/mmstar.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"mmstar\.parquet is not a parquet file .*fetch it again"):
        bench("mmstar").questions(tmp_path)
    write_parquet(
        path, [{"index": 1, "question": "?", "answer": "B", "image": {"bytes": None, "path": None}}]
    )
    with pytest.raises(DataError, match=r"mmstar\.parquet, row 1: the question lists no options"):
        bench("mmstar").questions(tmp_path)
    (row,) = read_published(path)
    with pytest.raises(DataError, match=r"row 0 of row group 0: 'image' holds no picture but {'bytes': None"):
        row.pictures["image"].read()
    monkeypatch.setattr(published_rows, "MAX_GROUP_BYTES", 8)
    with pytest.raises(DataError, match=r"row group 0 takes .* bytes, at most 8 .*smaller row groups"):
        list(read_published(path))


def test_a_folder_without_the_split_is_refused(tmp_path):
    """The training split would be asked in place of the test split."""
    WRITERS["mmk12"](tmp_path)
    (tmp_path / "mmk12/data/test-00000-of-00001.parquet").unlink()
    with pytest.raises(MissingFileError, match=r"mmk12/data holds no file test-\*\.parquet"):
        bench("mmk12").questions(tmp_path)


def test_answers_to_other_questions_are_refused(root, tmp_path):
    """Answers would be graded with the keys of other questions."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question_id": "nobody", "text": "3"}) + "\n")
    with pytest.raises(DataError, match="not answers to TabMWP"):
        score_file(path, root, "tabmwp")
    with pytest.raises(MissingFileError, match=r"no tabmwp/problems_test\.json under .*--where tabmwp"):
        score_file(path, tmp_path, "tabmwp")
