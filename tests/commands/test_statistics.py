"""`reverse compare`, `sweep`, `calibrate`, `report` as a user types them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.scenes import make_scene
from reverse.errors import RequestError
from reverse.evaluation.stats.scored_tables import Table, ratio, save_scored


def call(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def scored(tmp_path):
    """Two scored files of one benchmark; the first makes less up."""
    metrics = [
        ratio("chair_i", "wrong", "mentions", "low", title="CHAIRi"),
        ratio("chair_s", "any", "answers", "low", title="CHAIRs"),
    ]
    paths = []
    for name, rate in (("ours", 0.05), ("base", 0.25)):
        rng = np.random.default_rng(0)
        wrong = rng.binomial(4, rate, 80).astype(float)
        columns = {
            "wrong": wrong,
            "mentions": np.full(80, 4.0),
            "any": (wrong > 0) * 1.0,
            "answers": np.ones(80),
        }
        keys = list(map(str, range(80)))
        save_scored(tmp_path / f"{name}.json", Table("chair", keys, columns, keys=keys), metrics)
        paths.append(tmp_path / f"{name}.json")
    return paths


@pytest.fixture
def answers(tmp_path):
    """Judged answers with checking off: wrong phrases have the higher p."""
    rng = np.random.default_rng(1)
    paths = []
    for split, count in (("val", 300), ("test", 200)):
        lines = []
        for i in range(count):
            wrong = rng.random(4) < 0.15
            p = np.where(wrong, rng.beta(4, 3, 4), rng.beta(0.3, 8, 4))
            phrases = [["a dog", float(x), int(w)] for x, w in zip(p, wrong, strict=True)]
            lines.append(json.dumps({"id": f"{split}-{i:06d}", "text": "a dog", "phrases": phrases}) + "\n")
        paths.append(tmp_path / f"{split}.jsonl")
        paths[-1].write_text("".join(lines))
    return paths


def test_compare_says_who_is_better(tmp_path, scored):
    """A user could not tell a difference from chance."""
    shown = call("compare", *scored, "--out", tmp_path / "out")
    assert "CHAIRi % ↓" in shown and "McNemar" in shown and "forest.svg" in shown
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [each["verdict"] for each in content["metrics"]] == ["better", "better"]
    assert content["metrics"][0]["p_mcnemar"] is None and content["metrics"][1]["p_mcnemar"] < 0.01
    assert (tmp_path / "out" / "forest.png").exists()
    only = json.loads(call("compare", *scored, "--metric", "chair_s", "--json"))
    assert [each["metric"] for each in only["metrics"]] == ["chair_s"]


def test_compare_refuses_what_is_no_pair(tmp_path, scored):
    """Runs over other questions would be compared."""
    content = json.loads(scored[1].read_text())
    for name in ("keys", "clusters"):
        content[name] = [*content[name][:79], "other"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    shown = " ".join(call("compare", scored[0], other, code=2).split())
    assert "lacks 1 (79)" in shown and "lacks 1 (other)" in shown
    assert "it has chair_i, chair_s" in call("compare", *scored, "--metric", "f1", code=2)
    assert "not a scored file" in call("compare", scored[0], __file__, code=2)
    assert "bca or percentile" in call("compare", *scored, "--method", "normal", code=2)


def test_compare_leaves_out_what_one_run_does_not_have(tmp_path, scored):
    """A run with checking off has no unresolved answers, and could not be compared with one that has."""
    content = json.loads(scored[1].read_text())
    del content["columns"]["any"]
    content["metrics"] = content["metrics"][:1]
    scored[1].write_text(json.dumps(content))
    assert f"only in {scored[0]}: CHAIRs" in call("compare", *scored).replace("\n", "")
    shown = " ".join(call("compare", *scored, "--metric", "chair_s", code=2).split())
    assert "does not hold the columns of CHAIRs" in shown


def test_sweep_of_stored_answers(tmp_path, answers):
    """The detector could not be measured without decoding anew."""
    shown = call("sweep", answers[0], "--truth", "stored", "--out", tmp_path / "out", "--rounds", 50)
    assert "AUROC" in shown and "1200 phrases of 300 pictures" in shown
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"detector.json", "thresholds.csv"} | {
        f"{name}.{kind}" for name in ("roc", "reliability", "risk_coverage") for kind in ("png", "svg")
    }
    lines = (tmp_path / "out" / "thresholds.csv").read_text().splitlines()
    assert lines[0].startswith("threshold,kept,risk") and lines[-1].startswith(("0.", "1,"))
    assert len(lines) == 1201


def test_bins_are_those_of_the_figure_and_the_plot(tmp_path, answers):
    """--bins would change the plot and leave the ECE beside it at 15 bins."""
    from reverse.evaluation.detector.detection import ece
    from reverse.evaluation.detector.phrase_truth import read_phrases

    words = ("sweep", answers[0], "--truth", "stored", "--out", tmp_path, "--rounds", 20, "--bins")
    assert "ECE (4 bins" in call(*words, 4)
    found = json.loads((tmp_path / "detector.json").read_text())
    detector = read_phrases(answers[0])
    assert found["ece_bins"] == 4 and len(found["reliability"]["p"]) == 4
    assert found["figures"]["ece"]["point"] == pytest.approx(ece(detector.p, detector.wrong, 4))
    assert found["figures"]["ece"]["point"] != pytest.approx(ece(detector.p, detector.wrong, 15))
    call(*words, 0, code=2)


def test_sweep_decodes_scenes_anew(tmp_path):
    """Hallucination, coverage and tokens at a threshold could not be seen."""
    words = (
        "sweep",
        "--model",
        "tiny-llava",
        "--decode",
        "0.1",
        "--count",
        4,
        "--out",
        tmp_path,
        "--rounds",
        20,
    )
    shown = call(*words)
    assert "Decoded scenes" in shown
    lines = (tmp_path / "decoded.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith(",4,") and lines[2].startswith("0.1,4,")
    assert (tmp_path / "tradeoff.svg").exists() and (tmp_path / "decoded" / "on_0.1.jsonl").exists()
    before = (tmp_path / "decoded.csv").read_bytes()
    call(*words)  # nothing is decoded again
    assert (tmp_path / "decoded.csv").read_bytes() == before


def test_calibrate_promises_and_writes(tmp_path, answers):
    """A threshold would be written without its promise, or without being asked to."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llava"}')
    words = (
        "calibrate",
        answers[0],
        "--test",
        answers[1],
        "--truth",
        "stored",
        "--resplits",
        20,
        "--model",
        folder,
    )
    shown = call(*words)
    assert "with 95% confidence" in shown and "20 divisions into 250 + 250" in " ".join(shown.split())
    assert "reverse" not in json.loads((folder / "config.json").read_text())
    content = json.loads(call(*words, "--write", "--json", "--out", tmp_path / "out"))
    written = json.loads((folder / "config.json").read_text())["reverse"]
    assert (
        written["threshold"] == content["threshold"] and "at most 0.05" in written["calibration"]["promise"]
    )
    assert content["test"]["observed"] <= 0.05
    assert "not of decoding with the threshold" in call(*words, "--write")
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == content


@pytest.fixture
def about_scenes(tmp_path):
    """As `reverse eval --mode plain` about test scenes writes them: wrong phrases have the higher p."""
    lines = []
    for i in range(120):
        scene = make_scene("test", i)
        absent = next(name for name in ("dog", "pizza", "train", "bed") if name not in scene.truth)
        said = [(f"a {name}", 0.001) for name in sorted(scene.truth)[:3]] + [(f"a {absent}", 0.9)]
        phrases = [{"text": text, "p_un": p} for text, p in said]
        row = {"question_id": i, "image_id": f"images/{scene.id}.png", "text": "", "phrases": phrases}
        lines.append(json.dumps(row) + "\n")
    path = tmp_path / "off.jsonl"
    path.write_text("".join(lines))
    return path


def test_a_threshold_is_not_tested_on_the_scenes_that_chose_it(tmp_path, about_scenes):
    """A promise would be checked on the very pictures it was fitted to, and hold there."""
    words = (
        "calibrate",
        about_scenes,
        "--model",
        "tiny-llava",
        "--decode",
        "--resplits",
        2,
        "--out",
        tmp_path,
    )
    shown = " ".join(call(*words, "--count", 200, code=2).split())
    assert "120 of the 200 scenes of 'test' that are to be decoded gave the threshold" in shown
    assert "(test-000000, test-000001, test-000002)" in shown and "another --split" in shown
    assert not (tmp_path / "decoded").exists()  # refused before anything is decoded
    call(
        *words, "--count", 2, "--split", "val", code=1
    )  # others: too few for a promise, but they are decoded
    assert len(list((tmp_path / "decoded").glob("on_*.jsonl"))) == 5


def test_scenes_of_another_world_are_others(tmp_path, about_scenes, monkeypatch):
    """The same names stand for other scenes where the world has another seed."""
    from reverse.evaluation.detector import decoded_risk

    given = []

    def decoding(*_, given_by, **__):
        given.append(list(given_by))
        raise RequestError("reached")

    monkeypatch.setattr(decoded_risk, "calibrate_decoding", decoding)
    words = ("calibrate", about_scenes, "--model", "tiny-llava", "--decode", "--resplits", 2)
    assert "reached" in call(*words, "--seed", 3, code=2)
    assert "reached" in call(*words, code=2)
    assert given[0] == [] and len(given[1]) == 120


def test_calibrate_sees_one_picture_under_two_names(tmp_path, about_scenes):
    """The same pictures in another folder would pass for others, and the check say what the fit said."""
    moved = tmp_path / "moved.jsonl"
    moved.write_text(about_scenes.read_text().replace("images/test-", "elsewhere/COCO_test-"))
    shown = " ".join(call("calibrate", about_scenes, "--test", moved, code=2).split())
    assert "120 pictures are in both files (test-000000" in shown


@pytest.mark.parametrize("option", ["--count", "--batch-size", "--rounds"])
def test_nothing_is_not_a_number_of_things(tmp_path, answers, option):
    """A batch of no answers would never end; no rounds would be a traceback."""
    shown = call("sweep", answers[0], "--truth", "stored", "--out", tmp_path, option, 0, code=2)
    assert option in shown


def test_calibrate_says_when_nothing_can_be_promised(tmp_path, answers):
    """A script would go on with a threshold that holds nothing."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(answers[0].read_text().splitlines(keepends=True)[:10]))
    shown = call("calibrate", few, "--truth", "stored", code=1)
    assert "no threshold can be promised with 10 pictures" in shown
    (tmp_path / "config.json").write_text("{}")
    shown = call("calibrate", few, "--truth", "stored", "--write", "--model", tmp_path, code=2)
    assert "these answers allow no guarantee" in shown


def test_what_is_missing_is_said(tmp_path, answers):
    """A user would see a traceback."""
    assert "--write and --decode need --model" in call("calibrate", answers[0], "--write", code=2)
    assert "no answers file" in call("calibrate", tmp_path / "none.jsonl", code=2)
    assert "already" not in call("calibrate", answers[0], "--truth", "guess", code=2)
    assert "name an answers file" in call("sweep", code=2)
    assert "takes numbers" in call("sweep", answers[0], "--decode", "a", "--model", "tiny-llava", code=2)
    assert "pictures are in both files" in " ".join(
        call("calibrate", answers[0], "--test", answers[0], "--truth", "stored", code=2).split()
    )
    assert "no truth at" in call("sweep", answers[0], "--truth", f"chair:{tmp_path / 'no'}", code=2)


def test_report_of_a_folder(tmp_path, scored):
    """The page could not be made from what the other commands write."""
    call("compare", *scored, "--out", tmp_path / "compared")
    shown = call("report", tmp_path, "--out", tmp_path / "report", "--rounds", 100)
    assert "report.html" in shown and "forest" in (tmp_path / "report" / "report.html").read_text()
    assert "nothing to report" in call("report", tmp_path / "report", "--out", tmp_path / "r2", code=2)
