"""Options and commands that the parser refuses: one line with the value, as for all other refusals."""

import pytest
from typer.testing import CliRunner

from reverse.cli import app


def run(*words):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("eval", "pope", "--max-sequences", "0"), ("--max-sequences", "greater than or equal to 1", "'0'")),
        (("generate", "m", "--threshold", "abc"), ("--threshold", "valid number", "'abc'")),
        (("generate", "m", "--threshold="), ("--threshold", "valid number", "''")),
        (("generate", "m", "--hints", "1.5"), ("--hints", "valid integer", "'1.5'")),
        (("generate", "m", "--treshold", "3"), ("--treshold", "--threshold")),
        (("generte", "m"), ("generte", "generate")),
        (("data", "chek"), ("chek", "check")),
        (("compare", "a.json"), ("second",)),
    ],
)
def test_a_wrong_option_is_one_line_with_its_value(words, told):
    """Five lines of a box would say that a number is none, and not which."""
    result = run(*words)
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith("--help`") and "see `reverse " in line
    assert all(word in line for word in told), line


def test_a_group_alone_shows_its_commands():
    """`reverse data` would be an error of one line instead of its help."""
    assert "subsample" in run("data").output


def test_control_characters_of_a_message_are_escaped():
    """A file's name or content could colour the terminal, or hide what stands before it."""
    result = run("generate", "./no\x1b[31mwhere\u202e")
    assert result.exit_code == 2 and "\x1b" not in result.stderr and "\u202e" not in result.stderr
    assert r"\x1b[31mwhere\u202e" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data", "scenes", "{notes}/x"), ("notes.txt", "name another folder")),
        (("eval", "pope", "--model", "m", "--data", "scenes", "--out", "{notes}"), ("notes.txt", "folder")),
        (("train", "{long}"), ("xxx", "give")),
        (("report", "{loop}"), ("loop", "loop")),
    ],
)
def test_errors_of_the_system_say_what_to_do(words, told, tmp_path):
    """`[Errno 17] File exists` does not say what to name instead."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = {"notes": tmp_path / "notes.txt", "loop": tmp_path / "loop", "long": "x" * 5000}
    result = run(*(word.format(**names) for word in words))
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    assert "[Errno" not in line and all(word in line for word in told) and len(line) < 600, line
