"""`reverse generate`: every option arrives, pieces come as they are made, checks come before the model."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

import reverse
from reverse import cli
from reverse.cli import app
from reverse.files.file_lock import output_lock
from tests.decoding.worlds import picture as noise
from tests.decoding.worlds import talkative


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "kitchen.png"
    noise(0).save(path)
    return str(path)


@pytest.fixture(scope="module")
def talker():
    """(model, processor) that says many phrases."""
    return talkative("llava", dtype=None)


@pytest.fixture
def loaded(talker, monkeypatch):
    """`load` gives the talker, whatever it is asked for."""
    monkeypatch.setattr(reverse, "load", lambda *_, **__: talker)
    return talker


@pytest.fixture
def unloaded(monkeypatch):
    """No model may be loaded."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(reverse, "load", load)
    monkeypatch.setattr("reverse.models.load", load)
    monkeypatch.setattr("reverse.models.checkpoints.token_adding.load_weights", load)
    monkeypatch.setattr("reverse.models.adapters.merging.load_weights", load)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def answered(*options):
    said = run("generate", "m", "--threshold", "0.3", "--max-new-tokens", 30, *options)
    assert said.exit_code == 0, said.output
    return said


def test_every_option_arrives(loaded, kitchen, monkeypatch):
    """An option would be parsed and forgotten."""
    seen = {}

    real = reverse.generate
    monkeypatch.setattr(reverse, "generate", lambda *a, **k: seen.update(k) or real(*a, **k))
    answered(
        "--image", kitchen, "--commit", "phrase", "--candidates", 2, "--system", "Be brief.", "--top-p", 0.9,
        "--max-attempts", 3, "--hints", 1, "--do-sample", "--temperature", 0.7, "--seed", 4,
        "--on-exhausted", "drop",
    )  # fmt: skip
    wanted = {
        "commit": "phrase", "candidates": 2, "system": "Be brief.", "top_p": 0.9, "max_attempts": 3,
        "hints": 1, "do_sample": True, "temperature": 0.7, "seed": 4, "on_exhausted": "drop",
        "threshold": 0.3, "max_new_tokens": 30, "mode": "resample",
    }  # fmt: skip
    assert {name: seen[name] for name in wanted} == wanted


def test_max_attempts_decide(loaded, kitchen):
    """The option would reach the library under a name that it does not read."""
    none = json.loads(answered("--image", kitchen, "--json", "--max-attempts", 0).stdout)
    some = json.loads(answered("--image", kitchen, "--json").stdout)
    assert none["usage"]["discarded"] == 0 < some["usage"]["discarded"]


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_streamed_pieces_are_the_answer(loaded, kitchen, monkeypatch, pictures):
    """A reader of the stream would get another text, or all of it at the end."""
    options = ["--image", kitchen] * pictures + (["--mode", "plain"] if pictures == 1 else [])
    whole = answered(*options).stdout
    pieces = []
    echo = cli.typer.echo
    monkeypatch.setattr(
        cli.typer, "echo", lambda text="", **how: (pieces.append((text, how)), echo(text, **how))
    )
    streamed = answered(*options, "--stream")
    assert streamed.stdout.split() == whole.split()
    made = [text for text, how in pieces if how == {"nl": False}]
    assert "".join(made).split() == whole.split() and (len(made) > 1 or pictures != 1)


def test_a_question_without_a_picture_is_said(loaded):
    """A forgotten --image would get a description of nothing."""
    said = answered()
    assert "no --image is given" in said.stderr and "no --image" not in said.stdout
    assert said.stdout.strip()


def test_with_a_picture_nothing_is_said(loaded, kitchen):
    """The note would stand there always, and nobody read it."""
    assert "--image" not in answered("--image", kitchen, "--mode", "plain").stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threshold", "3"), ("got 3.0", "try 0.003")),
        (("--mode", "resampel"), ("mode must be one of", "'resampel'")),
        (("--commit", "word"), ("commit must be one of", "'word'")),
        (("--candidates", "0"), ("candidates", "got 0")),
        (("--max-attempts", "-1"), ("max_attempts", "got -1")),
        (("--max-new-tokens", "0"), ("max_new_tokens", "got 0")),
        (("--hints", "-1"), ("hints", "got -1")),
        (("--top-p", "0"), ("top_p must lie in (0, 1]", "got 0")),
        (("--top-p", "1.5"), ("top_p must lie in (0, 1]", "got 1.5")),
        (("--on-exhausted", "bets"), ("on_exhausted must be one of", "'bets'")),
        (("--temperature", "0.5"), ("--temperature 0.5", "add --do-sample")),
        (("--do-sample", "--temperature", "0"), ("--temperature must be above 0",)),
        (("--do-sample", "--temperature", "-1"), ("--temperature must be above 0",)),
        (("--stream", "--json"), ("choose one of them",)),
        (("--prompt", " "), ("prompt 0 is empty",)),
        (("--image", "nothing.png"), ("no such image", "nothing.png")),
        (("--image", "https://example.org/a.png"), ("on the network",)),
        (("--dtype", "float8"), ("dtype must be one of", "'float8'")),
        (("--device", "tpu"), ("device 'tpu'",)),
    ],
)
def test_generate_checks_before_it_loads(unloaded, options, words):
    """Minutes of loading would pass before a wrong option is named."""
    said = run("generate", "tiny-llava", *options)
    assert said.exit_code == 2, said.output
    (line,) = said.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("demo", "--threshold", "2"), ("threshold must lie in (0, 1]",)),
        (("tokens", "add", "tiny-llava", "{full}"), ("is not empty",)),
        (("tokens", "add", "tiny-llava", "{file}/out"), (", a file",)),
        (("merge", "{full}", "{full}"), ("is not empty",)),
        (("merge", "{full}", "{file}/out"), (", a file",)),
        (("merge", "{full}", "{new}", "--dtype", "int3"), ("dtype must be one of",)),
        (("convert", "{full}", "{full}"), ("is not empty",)),
        (("convert", "{full}", "{new}", "--dtype", "int3"), ("dtype must be one of",)),
        (("tokens", "add", "tiny-llava", "{held}"), ("is being written by another process",)),
        (("merge", "{full}", "{held}"), ("is being written by another process",)),
        (("convert", "{full}", "{held}"), ("is being written by another process",)),
    ],
)
def test_every_command_checks_before_it_loads(unloaded, tmp_path, command, words):
    """A checkpoint of many gigabytes would be read before the output is found to be taken."""
    import threading

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    places = {name: str(tmp_path / name) for name in ("full", "file", "new", "held")}
    said = []
    with output_lock(tmp_path / "held"):
        thread = threading.Thread(
            target=lambda: said.append(run(*(word.format(**places) for word in command)))
        )
        thread.start()
        thread.join()
    assert said[0].exit_code == 2, said[0].output
    line = " ".join(said[0].stderr.split())
    assert all(word in line for word in words), line
    assert not (tmp_path / "new").exists()


def test_completion_is_there():
    """Names of twenty commands would have to be typed in full."""
    said = run("--help").stdout
    assert "--install-completion" in said and "--show-completion" in said


def test_a_palette_picture_answers_as_its_file(loaded, tmp_path):
    """Opening pictures before the model is loaded would change what the model sees."""
    path = tmp_path / "palette.png"
    noise(1).convert("P").save(path)
    said = json.loads(answered("--image", path, "--json").stdout)
    model, processor = loaded
    direct = reverse.generate(model, processor, images=str(path), threshold=0.3, max_new_tokens=30)
    assert said["ids"] == list(direct.ids)
    assert Image.open(path).mode == "P"


def test_settings_of_a_mode(loaded):
    """`--n` would be taken by a mode that has no samples, and do nothing."""
    result = run(
        "generate",
        "any",
        "--mode",
        "select",
        "--n",
        "2",
        "--judge",
        "vote",
        "--json",
        "--max-new-tokens",
        "4",
    )
    assert result.exit_code == 0 and len(json.loads(result.stdout)["drafts"]) == 2
    result = run("generate", "any", "--mode", "plain", "--n", "2")
    assert (
        result.exit_code == 2
        and "--n is not a setting of --mode plain: select, auto have it" in result.stderr
    )
    result = run("generate", "any", "--mode", "select", "--n", "0")
    assert result.exit_code == 2 and "n must be" in result.stderr
