"""The benchmark of docs/contributing/add_a_benchmark.md, taken from the page and run."""

import importlib.util
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.scenes import make_scene, render_scene
from reverse.evaluation import benchmarks
from tests.docs.reading import ROOT, python_of

PAGE = ROOT / "docs/contributing/add_a_benchmark.md"


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """The record of the page's file, registered, and a folder with its files."""
    (snippet,) = python_of(PAGE)
    file = tmp_path / "colours.py"
    file.write_text(snippet.text)
    spec = importlib.util.spec_from_file_location("colours", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", dict(benchmarks.BENCHMARKS))
    monkeypatch.setattr("reverse.evaluation.runs.scoring.BENCHMARKS", benchmarks.BENCHMARKS)
    benchmarks.register(module.COLOURS)
    images = tmp_path / "data/colours/images"
    images.mkdir(parents=True)
    rows = []
    for number in range(3):
        scene = make_scene("test", number)
        Image.fromarray(render_scene(scene)).save(images / f"{number}.png")
        question = f"Which colour does the ground have, {scene.ground.colour} or another?"
        rows.append({"question_id": number, "image": f"{number}.png", "text": question, "answer": "a"})
    (tmp_path / "data/colours/colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_adds_a_benchmark(colours, tmp_path):
    """Who follows the page would end with a benchmark that cannot be run, found or scored."""
    assert "colours/colours.jsonl" in run("eval", "--where", "colours", "--data", colours)
    out = tmp_path / "out"
    run("eval", "colours", "--model", "tiny-llava", "--data", colours, "--out", out, "--score")
    answers = [json.loads(line) for line in (out / "colours.jsonl").read_text().splitlines()]
    assert len(answers) == 3
    for path in (out / "colours.jsonl", out / "theirs.jsonl"):
        if not path.exists():  # of another program: the truth tells the benchmark
            path.write_text(
                "".join(json.dumps({k: r[k] for k in ("question_id", "text")}) + "\n" for r in answers)
            )
        report = json.loads(run("score", path, "--truth", colours, "--json", "--rounds", 0))
        right = sum("a" in answer["text"].lower().strip(".").split() for answer in answers)
        assert report["benchmark"] == "colours" and report["answers"] == 3
        assert report["metrics"]["accuracy"]["value"] == pytest.approx(right / 3)


def test_two_benchmarks_of_one_name_are_refused(colours):
    """The second of two would replace the first without a word."""
    with pytest.raises(ValueError, match="'colours' already"):
        benchmarks.register(type(benchmarks.BENCHMARKS["colours"])(**vars(benchmarks.BENCHMARKS["colours"])))
