"""The commands: what they print, and that a refusal is one line and exit code 2."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.tiny_models import build_tiny_llava
from reverse import __version__
from reverse.cli import app
from reverse.demo import load_examples
from reverse.tokens import TAGS, find_token_ids
from tests.decoding.worlds import picture as noise
from tests.decoding.worlds import talkative
from tests.warm_python import start_python

COMMANDS = ("demo", "generate", "tokens", "data")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny model that says many phrases."""
    path = tmp_path_factory.mktemp("checkpoint")
    model, processor = talkative("llava", dtype=None)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "kitchen.png"
    noise(0).save(path)
    return str(path)


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(a) for a in arguments], **options)


def generated(checkpoint, kitchen, *more):
    options = ("--image", kitchen, "--threshold", "0.3", "--max-new-tokens", "40", *more)
    return run("generate", checkpoint, *options)


def refused(result, *words):
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.output and result.stdout == ""
    for word in words:
        assert word in lines[0]


def test_help_lists_the_commands():
    """A command that is not registered would be there in the code only."""
    result = run("--help")
    assert result.exit_code == 0
    assert all(f" {command} " in result.stdout for command in COMMANDS)
    assert "add" in run("tokens", "--help").stdout and "scenes" in run("data", "--help").stdout


def test_help_needs_no_torch():
    """A heavy import at the top would make every `reverse --help` take seconds."""
    code = (
        "import sys, reverse.cli\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    said = subprocess.run([sys.executable, "-m", "reverse", "--version"], capture_output=True, text=True)
    assert said.stdout == f"reverse {__version__}\n"


def test_generate_says_the_text(checkpoint, kitchen):
    """Tags, colour codes or log lines would stand in what a script reads."""
    result = generated(checkpoint, kitchen)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() and "\x1b" not in result.stdout
    assert not any(tag in result.stdout for tag in TAGS)
    assert not set("─│╭") & set(result.stdout)


def test_generate_json(checkpoint, kitchen):
    """The trace would be lost between the library and the command."""
    result = generated(checkpoint, kitchen, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["phrases"] and answer["trace"] and answer["usage"]["discarded"] > 0
    assert {"phrase", "p_un", "temperature", "rewound_to"} <= set(answer["trace"][0])
    assert answer["text"].split() == generated(checkpoint, kitchen).stdout.split()


def test_generate_options_arrive(checkpoint, kitchen):
    """An option would be parsed and forgotten."""
    plain = json.loads(generated(checkpoint, kitchen, "--json", "--mode", "plain").stdout)
    assert plain["resolved"] is None and plain["trace"] == []
    short = json.loads(generated(checkpoint, kitchen, "--json", "--max-new-tokens", 5).stdout)
    assert short["usage"]["kept"] <= 5
    sampled = [
        json.loads(generated(checkpoint, kitchen, "--json", "--do-sample", "--seed", seed).stdout)["ids"]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    half = generated(checkpoint, kitchen, "--dtype", "bfloat16", "--device", "cpu", "--hints", 0)
    assert half.exit_code == 0, half.output


def test_several_pictures_are_one_request(checkpoint, kitchen):
    """Two --image would be answered one by one, or the second be dropped."""
    result = generated(checkpoint, kitchen, "--image", kitchen, "--prompt", "What differs?", "--json")
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout)["text"], str)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threshold", "3"), ("got 3.0", "try 0.003")),
        (("--image", "nothing.png"), ("no such image", "nothing.png")),
        (("--image", "https://example.org/a.png"), ("on the network", "https://example.org/a.png")),
        (("--image", ""), ("image path is empty",)),
        (("--prompt", ""), ("prompt 0 is empty", "ask something")),
        (("--mode", "resampel"), ("mode must be one of", "'resampel'")),
        (("--on-exhausted", "bets"), ("on_exhausted must be one of", "'bets'")),
        (("--max-new-tokens", "0"), ("max_new_tokens", "got 0")),
        (("--seed", "99999999999999999999"), ("--seed must be", "got 99999999999999999999")),
        (("--temperature", "0.5"), ("--temperature 0.5", "add --do-sample")),
        (("--dtype", "float8"), ("dtype must be one of", "'float8'")),
        (("--device", "tpu"), ("device 'tpu'", "cpu")),
    ],
)
def test_refusals_are_one_line(checkpoint, kitchen, options, words):
    """A wrong option would end in forty lines of traceback."""
    refused(generated(checkpoint, kitchen, *options), *words)


def test_an_address_of_a_file(checkpoint, kitchen):
    """What is dragged into a terminal may be a file:// address."""
    result = run("generate", checkpoint, "--image", f"file://{kitchen}", "--max-new-tokens", 3)
    assert result.exit_code == 0, result.output


def test_a_model_that_is_not_there():
    """A misspelt folder would be looked for on the network."""
    refused(run("generate", "./nowhere"), "there is no folder './nowhere'", "tiny-llava")


def test_debug_shows_the_traceback(monkeypatch):
    """Nobody could report where an error comes from."""
    for arguments in (("--debug", "generate", "./nowhere"), ("generate", "./nowhere")):
        result = run(*arguments)
        assert isinstance(result.exception, FileNotFoundError)
        monkeypatch.setenv("REVERSE_DEBUG", "1")  # for the second round


def test_tokens_add(tmp_path):
    """The command would write a checkpoint that `load` refuses."""
    model, processor = build_tiny_llava(seed=0)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    refused(run("generate", tmp_path / "base"), "does not know <SPAN>", "reverse tokens add")
    result = run("tokens", "add", tmp_path / "base", tmp_path / "out", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "<SPAN>" in result.stdout and str(tmp_path / "out") in result.stdout.replace("\n", "")
    from reverse import load

    _, processor = load(tmp_path / "out")
    assert str(find_token_ids(processor.tokenizer).un) in result.stdout
    refused(run("tokens", "add", tmp_path / "base", tmp_path / "out"), "is not empty", "does not exist yet")


def test_a_damaged_checkpoint_is_one_line(checkpoint, kitchen, tmp_path):
    """An interrupted download would end in a traceback of safetensors."""
    folder = shutil.copytree(checkpoint, tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5000])
    refused(generated(str(folder), kitchen), "damaged or cut off", "fetch them again")
    refused(run("tokens", "add", folder, tmp_path / "out"), "damaged or cut off")


def test_data_scenes(tmp_path):
    """The command would write other scenes than the library, or none."""
    arguments = ("data", "scenes", tmp_path / "s", "--split", "test", "--count", 4, "--seed", 0)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "4 scenes of test" in result.stdout.replace("\n", "")
    assert len(list((tmp_path / "s" / "images").glob("test-*.png"))) == 4
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["count"] == 4
    assert run(*arguments).exit_code == 0  # finished before: left as it is
    refused(run("data", "scenes", tmp_path / "t", "--split", "tset"), "'tset'", "train")


def test_data_scenes_keeps_out_of_other_folders(tmp_path):
    """Scenes would be mixed with someone's pictures, or the error be a traceback of mkdir."""
    (tmp_path / "notes.txt").write_text("mine")
    refused(
        run("data", "scenes", tmp_path / "notes.txt", "--count", 1), "notes.txt is a file", "name a folder"
    )
    refused(run("data", "scenes", tmp_path, "--count", 1), "holds notes.txt", "name an empty folder")
    (tmp_path / "photos" / "images").mkdir(parents=True)
    (tmp_path / "photos" / "images" / "dog.png").write_bytes(b"")
    refused(run("data", "scenes", tmp_path / "photos", "--count", 1), "dog.png", "name an empty folder")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "photos"}


def test_the_evaluation_script_says_what_is_missing(tmp_path):
    """Without a twin the script would fail in Python, after the tagged model was measured."""
    script = Path(__file__).parent.parent / "scripts" / "eval" / "scenes.sh"
    command = ["bash", str(script), "tiny-llava", str(tmp_path / "twin"), str(tmp_path / "out")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 2 and "scripts/train/scenes_llava.sh" in said.stderr
    assert len(said.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_demo_errs_and_mends():
    """What a newcomer sees first would not run, or show nothing: no error, nothing taken back."""
    result = run("demo")
    assert result.exit_code == 0, result.output
    shown = result.stdout.replace("\n", "")
    pictures = load_examples()
    assert len(pictures) == 3
    assert all(example.picture.name in shown for example in pictures)
    assert result.stdout.count("plain ") == result.stdout.count("checked ") == 3
    assert result.stdout.count("taken back") >= 3 and "p(</UN>)" in shown and "not there:" in shown
    before, after = shown.rsplit("Objects named that are not there: ", 1)[1].split(" with checking off, ")
    assert int(before) >= 3 and int(after.split()[0]) < int(before)


def test_a_piped_demo_is_plain_lines(tmp_path):
    """A file or a pager would get boxes, and sentences cut at the 80th column."""
    process = start_python("-m", "reverse", "demo", stdout=tmp_path / "out", stderr=tmp_path / "err")
    process.join()
    assert process.exitcode == 0, (tmp_path / "err").read_text()
    shown = (tmp_path / "out").read_text(encoding="utf-8")
    assert not set("─━│┃╭┏└\x1b") & set(shown)
    lines = shown.splitlines()
    answers = [line for line in lines if line.startswith(("plain ", "checked "))]
    assert len(answers) == 6 and all(line.endswith(".") for line in answers)
    assert max(map(len, lines)) > 80


def test_demo_on_a_terminal_keeps_to_its_width(monkeypatch):
    """Tables and answers would run over the edge of a narrow window."""
    import io

    from rich.console import Console

    from reverse.demo import show_demo

    one = load_examples()[-1:]
    monkeypatch.setattr("reverse.demo.load_examples", lambda: one)
    screen = io.StringIO()
    show_demo(Console(file=screen, force_terminal=True, width=70, color_system=None))
    lines = screen.getvalue().splitlines()
    assert any("┃" in line for line in lines)
    assert all(len(line) <= 70 for line in lines if ".png" not in line)


def test_demo_pictures_are_what_the_world_makes():
    """A picture and the truth beside it would drift apart, and right phrases be shown in red."""
    import numpy as np
    from PIL import Image

    from reverse.data.scenes import make_scene, render_scene

    for example in load_examples():
        split, index = example.picture.stem.split("-")
        scene = make_scene(split, int(index))
        assert split == "test" and scene.truth == example.truth
        assert np.array_equal(np.asarray(Image.open(example.picture).convert("RGB")), render_scene(scene))


def test_demo_without_its_pictures(tmp_path, monkeypatch):
    """A broken installation would print an empty demonstration and a zero exit code."""
    from reverse import demo

    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    refused(run("demo"), "no demo pictures", "make_demo.py")


def test_python_dash_m(tmp_path):
    """`python -m reverse` would not be the same command, and a refusal there have another exit code."""
    arguments = ("data", "scenes", str(tmp_path / "s"), "--split", "tset")
    said = subprocess.run([sys.executable, "-m", "reverse", *arguments], capture_output=True, text=True)
    assert said.returncode == 2 and said.stdout == ""
    assert said.stderr.startswith("error: ") and len(said.stderr.splitlines()) == 1


def test_a_suspect_answer_says_so(checkpoint, kitchen):
    """A reader of the text alone would take an answer that stayed suspect for a checked one."""
    result = generated(checkpoint, kitchen, "--threshold", "0.0001")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() and "stayed suspect" in result.stderr
