"""`reverse data import --as` and `export --as` as a user runs them."""

import json

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.drafts.draft_files import read_drafts
from tests.data.drafts.published_items import BEAM, ITEMS


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def beam(tmp_path):
    path = tmp_path / "beam.jsonl"
    path.write_text("".join(json.dumps(BEAM | {"data_id": str(n)}) + "\n" for n in range(3)))
    return path


def test_a_file_is_imported_and_exported_as_it_was(beam, tmp_path):
    """The two commands would not fit together."""
    result = run("import", beam, tmp_path / "d.jsonl", "--as", "tsst-beam")
    assert result.exit_code == 0 and "3 records of tsst-beam" in result.stdout
    result = run("export", tmp_path / "d.jsonl", tmp_path / "again.jsonl", "--as", "tsst-beam")
    assert result.exit_code == 0 and "3 items" in result.stdout
    lines = (tmp_path / "again.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(line) for line in beam.read_text().splitlines()
    ]


def test_a_training_file_of_another_system_is_written(beam, tmp_path):
    """Drafts that were sampled for one trainer could not be used by another one."""
    run("import", beam, tmp_path / "d.jsonl", "--as", "tsst-beam")
    assert run("export", tmp_path / "d.jsonl", tmp_path / "v.jsonl", "--as", "tsst-value").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert {row["value"] for row in rows} == {0.5, 1.0, 0.25} and all(row["image"] for row in rows)
    assert run("export", tmp_path / "d.jsonl", tmp_path / "r.json", "--as", "r3v").exit_code == 0
    assert len(json.loads((tmp_path / "r.json").read_text())) == 3
    assert run("export", tmp_path / "d.jsonl", tmp_path / "l.json", "--as", "r3v", "--link").exit_code == 0
    assert len(json.loads((tmp_path / "l.json").read_text())) == 6  # with one to refine each
    result = run("export", tmp_path / "d.jsonl", tmp_path / "s.json", "--as", "srpo-sft")
    assert result.exit_code == 1 and "3 records gave none, such as '0'" in result.stderr


def test_bad_items_stop_the_import_or_are_listed(beam, tmp_path):
    """Items would be lost without being asked for, or without being named."""
    beam.write_text(beam.read_text() + '{"data_id": 5}\n')
    out = tmp_path / "d.jsonl"
    result = run("import", beam, out, "--as", "tsst-beam")
    assert result.exit_code == 2 and "line 4" in result.stderr and "--skip-corrupt" in result.stderr
    assert not out.exists()
    result = run("import", beam, out, "--as", "tsst-beam", "--skip-corrupt")
    assert result.exit_code == 0 and "left out: 1" in result.stderr and "line 4" in result.stderr
    assert len(list(read_drafts(out))) == 3
    assert "line 4" in (tmp_path / "d.jsonl.skipped.jsonl").read_text()


def test_the_wrong_format_is_said(beam, tmp_path):
    """A file of another kind would become an empty draft file."""
    result = run("import", beam, tmp_path / "d.jsonl", "--as", "chartqa", "--skip-corrupt")
    assert result.exit_code == 2 and "holds no items of chartqa" in result.stderr
    assert not (tmp_path / "d.jsonl").exists()


def test_absolute_paths_need_a_root(tmp_path):
    """Pictures would be read from anywhere on the machine, or such a file could not be read at all."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps([ITEMS["r3v"][0] | {"image": "/data/charts/1.png"}]))
    assert run("import", path, tmp_path / "d.jsonl", "--as", "r3v").exit_code == 2
    assert run("import", path, tmp_path / "d.jsonl", "--as", "r3v", "--root", "/data/charts").exit_code == 0
    assert next(read_drafts(tmp_path / "d.jsonl")).images == ("1.png",)
