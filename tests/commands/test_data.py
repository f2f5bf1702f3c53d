"""`reverse data import`, `check`, `subsample`, `view` as a user runs them."""

import json

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.records.schema import make_record
from reverse.data.scenes import write_scenes


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def broken(tmp_path):
    """A file whose third record is cut, and whose fourth has a tag too many."""
    texts = [json.dumps(make_record(str(k), None, "What?", "<SPAN>a dog</CN>")) for k in range(4)]
    texts[2] = texts[2][:-20]
    texts[3] = texts[3].replace("<SPAN>", "")
    path = tmp_path / "broken.json"
    path.write_text(f"[{', '.join(texts)}]")
    return path


def test_import_check_and_view_of_a_good_set(tmp_path):
    """The commands would not fit together."""
    write_scenes(tmp_path / "scenes", "test", 3)
    assert run("import", tmp_path / "scenes" / "instruct.json", tmp_path / "set").exit_code == 0
    for path in (tmp_path / "scenes", tmp_path / "set", tmp_path / "scenes" / "instruct.json"):
        result = run("check", path, "--images", tmp_path / "scenes")
        assert result.exit_code == 0 and "nothing is wrong" in result.stdout and "yes_no" in result.stdout
        result = run("view", path, "--index", 0, "--n", 2, "--images", tmp_path / "scenes")
        assert result.exit_code == 0 and "record 1" in result.stdout and "<SPAN>" in result.stdout
        page = tmp_path / "look.html"
        result = run("view", path, "--n", 4, "--html", page, "--images", tmp_path / "scenes")
        assert result.exit_code == 0 and page.read_text().count("<img") == 4
        page.unlink()
    result = run("view", tmp_path / "scenes", "--id", "test-000000-caption")
    assert result.exit_code == 0 and "test-000000-caption" in result.stdout
    assert json.loads(run("check", tmp_path / "scenes", "--json").stdout)["ok"] is True


def test_what_is_wrong_ends_in_exit_code_1(broken, tmp_path):
    """A script that checks before it trains would train."""
    result = run("check", broken)
    assert result.exit_code == 1
    for words in (
        "broken records: 1",
        "item 2 (byte",
        "close without open: 1",
        "record 3, id '3', turn 0",
        "is wrong",
    ):
        assert words in result.stdout
    report = json.loads(run("check", broken, "--json").stdout)
    assert report["counts"]["broken"] == 1 and report["ok"] is False


def test_corrupt_records_are_refused_then_left_out(broken, tmp_path):
    """Records would be lost without being asked for, or without being named."""
    result = run("import", broken, tmp_path / "set")
    assert result.exit_code == 2 and "item 2 (byte" in result.stderr and "--skip-corrupt" in result.stderr
    result = run("import", broken, tmp_path / "set", "--skip-corrupt")
    assert result.exit_code == 0 and "3 records" in result.stdout
    assert "left out: 1" in result.stderr and "item 2" in result.stderr


def test_subsample_with_its_twin(tmp_path):
    """The matched subset could not be had from the command line."""
    records = [make_record(str(k), None, "What?", f"<SPAN>a dog</CN> {k}") for k in range(20)]
    plain = [make_record(str(k), None, "What?", f"a dog {k}") for k in range(25)]
    (tmp_path / "tagged.json").write_text(json.dumps(records))
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    both = ("--plain", tmp_path / "plain.json", tmp_path / "plain-5.json")
    result = run("subsample", tmp_path / "tagged.json", tmp_path / "5.json", "--n", 5, "--seed", 2, *both)
    assert (
        result.exit_code == 0
        and "5 ask the same" in result.stdout
        and "0 the plain, 5 the tagged" in result.stdout
    )
    parts = [json.loads((tmp_path / name).read_text()) for name in ("5.json", "plain-5.json")]
    assert [record["id"] for record in parts[0]] == [record["id"] for record in parts[1]]
    assert run("check", tmp_path / "5.json").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "gone.json", "set"), "gone.json"),
        (("check", "gone.json"), "gone.json"),
        (("check", "."), "holds no imported records"),
        (("check", ".", "--tokenizer", "./none"), "no folder './none'"),
        (("view", "gone.json"), "gone.json"),
        (("subsample", "gone.json", "out.json", "--n", "0"), "at least 1"),
    ],
)
def test_refusals_are_one_line(arguments, words, tmp_path, monkeypatch):
    """The user would read a traceback."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
