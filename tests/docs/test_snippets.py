"""Every Python and shell snippet of README and docs is tested, as `treatment` says."""

import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import typer.main
from typer.testing import CliRunner

import reverse
from experiments.tiny_models import build_tiny_llava
from reverse.cli import app
from reverse.data.scenes import make_scene, render_scene, write_scenes
from reverse.decoding.events import Append
from reverse.models import FAMILIES
from tests.docs.reading import (
    DOCUMENTS,
    ROOT,
    inline_of,
    name_of,
    python_of,
    shell_of,
    unknown_blocks_of,
)
from tests.docs.treatment import PROGRAMS, PROSE, READ, RUN, SHORTER, SIGNATURES

WITH_PYTHON = [path for path in DOCUMENTS if python_of(path)]
COMMANDS = [snippet for path in DOCUMENTS for snippet in shell_of(path)]
INLINE = [snippet for path in DOCUMENTS for snippet in inline_of(path)]


@pytest.fixture(scope="module")
def bundled():
    """(model, processor) of tiny-llava; read once."""
    return reverse.load("tiny-llava", device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_llava):
    """What snippets name, made once: pictures, checkpoints with and without the tokens, records."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("store")
    for name, number in (("kitchen", 0), ("street", 1)):
        Image.fromarray(render_scene(make_scene("test", number))).save(folder / f"{name}.png")
    for name, (model, processor) in (("tokens", tiny_llava), ("base", build_tiny_llava(seed=0))):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    write_scenes(folder / "scenes", "test", 1)
    records = json.loads((folder / "scenes" / "instruct.json").read_text())
    plain = [
        {**record, "conversations": [{**turn, "value": re.sub("</?[A-Z]+>", "", turn["value"])} for turn in
                                     record["conversations"]]}
        for record in records
        if not record["id"].endswith("-neg")
    ]  # fmt: skip
    (folder / "plain.json").write_text(json.dumps(plain))
    return folder


@pytest.fixture
def place(store, tmp_path, monkeypatch):
    """A working folder with the pictures and files that snippets name."""
    places = {
        "tokens": ("llava-with-tokens", "out/scenes/tags", "out/llava_v15"),
        "base": ("llava-hf/llava-1.5-7b-hf", "out/scenes/base"),
        "scenes": ("out/pictures", "playground/data"),
        "kitchen.png": ("kitchen.png",),
        "street.png": ("street.png",),
        "scenes/instruct.json": ("reverse_ft.json",),
        "plain.json": ("llava_v1_5_mix665k.json",),
    }
    for source, targets in places.items():
        for target in targets:
            path = tmp_path / target
            path.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (store / source).is_dir() else shutil.copyfile)(store / source, path)
    (tmp_path / "runs" / "llava").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    families = list(FAMILIES)
    yield tmp_path
    FAMILIES[:] = families  # a snippet may register another one


def prepare_files(document):
    """Files that the snippets of one document read and no other's."""
    if document == "docs/data.md":
        run("data", "import", "reverse_ft.json", "data/reverse_1.3m")
    if document == "docs/evaluation.md":
        from reverse.evaluation.runs.answers_files import AnswersFile, hash_config

        Path("out/eval").mkdir(parents=True)
        config = {"model": "m"}
        questions = {"ids": ["1"]}
        with AnswersFile("out/eval/chair.jsonl", {"config": config, "questions": questions}) as file:
            row = {"question_id": "1", "image_id": "a.png", "prompt": "?", "text": "A dog."}
            file.write(row | {"config": hash_config(config), "metadata": {"benchmark": "chair"}})
    if document == "docs/models.md":
        shutil.rmtree("llava-with-tokens")  # the first snippet makes it


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python(path, place, bundled, monkeypatch, capsys):
    """A name that does not exist, an argument that was renamed: the first thing a reader tries would fail."""
    document = name_of(path)
    prepare_files(document)
    load = reverse.load
    monkeypatch.setattr(
        reverse, "load", lambda name, **how: bundled if name == "tiny-llava" else load(name, **how)
    )
    for name in SIGNATURES.get(document, []):
        module, _, function = name.rpartition(".")
        real = getattr(importlib.import_module(module), function)
        double = create_autospec(real)
        if function == "score_file":
            double.return_value = (None, [])
        monkeypatch.setattr(name, double)
    names = {
        "reverse": reverse, "paths": ["kitchen.png", "street.png"], "text": "A dog",
        "event": Append(0, (7,), " and", 0.0), "Retract": reverse.decoding.events.Retract,
    }  # fmt: skip
    if document == "docs/models.md":
        names["model"], names["processor"] = build_tiny_llava(seed=1)
    else:
        names["model"], names["processor"] = bundled
    for snippet in python_of(path):
        text = snippet.text
        for before, after in SHORTER.get(document, []):
            text = text.replace(before, after)
        try:
            exec(compile(text, str(snippet), "exec"), names)
        except Exception as error:
            raise AssertionError(f"{snippet}: {type(error).__name__}: {error}\n{text}") from error
    for name in SIGNATURES.get(document, []):
        module, _, function = name.rpartition(".")
        assert getattr(importlib.import_module(module), function).called, name


def test_values_beside_the_code_are_true(place):
    """The comments of decoding.md say what each call returns."""
    snippet = next(s for s in python_of(ROOT / "docs/decoding.md") if "Policy(" in s.text)
    names = {}
    *lines, last = [line for line in snippet.text.split("\n") if line]
    for line in lines:
        code, _, said = line.partition("  #")
        if not said:
            exec(line, names)
            continue
        shown = repr(eval(code.strip(), names))
        wanted = said.strip().removesuffix(", ...)").removesuffix(")")
        assert shown.startswith(wanted), (shown, said)
    code, _, said = last.partition("  #")
    assert list(eval(code.strip(), names)) == eval(said.strip())


def test_the_first_answer_of_the_readme_is_the_checkpoints_best(bundled, place):
    """The first snippet would override the bundled model's own threshold, and make its answer worse."""
    first = python_of(ROOT / "README.md")[0].text
    assert "threshold" not in first
    names = {}
    exec(compile(first, "README.md", "exec"), names)
    assert names["result"].text == reverse.generate(*bundled, images="kitchen.png").text


@pytest.mark.parametrize("snippet", COMMANDS, ids=str)
def test_shell(snippet, place):
    """An option that is gone, a script or extra under another name."""
    words = shlex.split(snippet.text)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
        words.pop(0)
    if words[0] == "torchrun":
        words = ["reverse", *words[words.index("reverse") + 1 :]]
    text = shlex.join(words)
    if words[0] != "reverse":
        assert words[0] in PROGRAMS, f"{snippet}: classify `{text}` in tests/docs/treatment.py"
        check_program(words)
        return
    for start, replacements in RUN.items():
        if text.startswith(start) and "torchrun" not in snippet.text:
            if "data/reverse_1.3m" in text and "data import" not in text:
                prepare_files("docs/data.md")
            if "scenes" in text and "train" in text:
                shutil.copytree("out/pictures", "out/scenes", dirs_exist_ok=True)
            if start.startswith(("reverse data scenes", "reverse tokens add")):
                shutil.rmtree(words[3] if "scenes" in start else words[4], ignore_errors=True)
            for before, after in replacements:
                assert before in text, f"{snippet}: {before!r} does not stand in it: mend RUN"
                text = text.replace(before, after)
            run(*shlex.split(text)[1:])
            return
    check_read(snippet, words)


@pytest.mark.parametrize("snippet", INLINE, ids=str)
def test_inline(snippet):
    """The tables of commands would name options that are not there."""
    text = snippet.text.replace("[", " ").replace("]", " ").replace("…", " ")
    words = shlex.split(text)
    current = typer.main.get_command(app)
    rest = words[1:]
    while rest and rest[0] in getattr(current, "commands", {}):
        current = current.commands[rest.pop(0)]
    assert current.name or len(words) > 1, snippet
    assert not getattr(current, "commands", {}), f"{snippet}: there is no command `{text}`"
    check_read(snippet, words, parse=False)
    known = {option for each in current.params for option in each.opts}
    unknown = [word.partition("=")[0] for word in rest if word.startswith("--")]
    assert set(unknown) <= known, f"{snippet}: {set(unknown) - known} of `{snippet.text}`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_block_is_known(path):
    """A snippet in a new shape would be tested by nobody."""
    for block in unknown_blocks_of(path):
        assert block.text.startswith(tuple(PROSE)), f"{block}: classify it in tests/docs/treatment.py"


def run(*words):
    said = CliRunner().invoke(app, list(words))
    assert said.exit_code == 0, f"{shlex.join(words)}: {said.output} {said.exception!r}"


def check_read(snippet, words, parse=True):
    """The command is classified, its test exists, and its options are read without complaint."""
    text = shlex.join(words)
    reason = next((READ[start] for start in READ if text.startswith(start)), None)
    assert reason is not None, f"{snippet}: classify `{text}` in tests/docs/treatment.py"
    if reason.startswith("tests/"):
        file, _, function = reason.partition("::")
        assert f"def {function}" in (ROOT / file).read_text()
    if parse:
        current, rest = typer.main.get_command(app), words[1:]
        while rest and rest[0] in getattr(current, "commands", {}):
            current = current.commands[rest.pop(0)]
        current.make_context(current.name, list(rest))


def check_program(words):
    """A script, module, target or extra is there."""
    program, *rest = words
    if program == "make":
        assert re.search(rf"(?m)^{rest[0]}:", (ROOT / "Makefile").read_text()), rest
    elif program == "pip":
        extras = re.findall(r"\[([a-z,]+)\]", " ".join(rest))
        known = (ROOT / "pyproject.toml").read_text()
        for extra in filter(None, ",".join(extras).split(",")):
            assert re.search(rf"(?m)^{extra} = \[", known), extra
    elif program == "bash":
        assert subprocess.run(["bash", "-n", str(ROOT / rest[0])]).returncode == 0
    elif program == "python" and rest[0] == "-m":
        module = importlib.util.find_spec(rest[1])
        assert module is not None, rest
        check_options(Path(module.origin), rest[2:])
    elif program == "python":
        check_options(ROOT / rest[0], rest[1:])


def check_options(file, words):
    """Options of a program of argparse, made of a dataclass' fields or written out."""
    files = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
    source = "\n".join(each.read_text() for each in files)
    if "read_recipe(" in source:
        source += (ROOT / "experiments/recipe_arguments.py").read_text()
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            assert f'"{word.partition("=")[0]}"' in source or f"{name.replace('-', '_')}:" in source, word


def test_documents_have_snippets():
    """The reader of the documents would find nothing, and all tests pass."""
    assert len(WITH_PYTHON) >= 8 and len(COMMANDS) >= 30 and len(INLINE) >= 30
    assert inspect.ismodule(reverse)
