"""Without these, `reverse tokens add` could write half a checkpoint, or read one that `load` refuses."""

import json

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import reverse.models.checkpoints.token_adding as adding
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.models import add_tokens_to_checkpoint, load
from reverse.tokens import find_token_ids

BUILDERS = [build_tiny_llava, build_tiny_qwen]


@pytest.fixture
def base(tmp_path):
    """A LLaVA without the three tokens, on disk."""
    model, processor = build_tiny_llava()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("build", BUILDERS)
def test_a_checkpoint_on_disk_gets_the_tokens(build, tmp_path):
    """`reverse tokens add` would write something that does not load, or lose the image processor."""
    model, processor = build()
    model = model.to(torch.bfloat16)
    base, out = tmp_path / "base", tmp_path / "deep" / "out"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    (base / "LICENSE").write_text("free")
    ids = add_tokens_to_checkpoint(base, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert find_token_ids(tokenizer) == ids
    again = type(model).from_pretrained(out, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert again.get_input_embeddings().weight.shape[0] == max(ids) + 1
    names = {file.name for file in out.iterdir()}
    assert {"LICENSE", "processor_config.json", "chat_template.jinja"} <= names
    assert not list(out.parent.glob(".out.*"))
    with pytest.raises(FileExistsError, match="not empty"):
        add_tokens_to_checkpoint(base, out)


def test_a_failed_copy_leaves_nothing_behind(tmp_path, base, monkeypatch):
    """Half a checkpoint would look like a whole one."""

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        add_tokens_to_checkpoint(base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(base):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def cut(base):
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])


REFUSED = {
    "pickled": (pickled, ValueError, "pickled weights only"),
    "cut off": (cut, ValueError, "damaged or cut off .*fetch them again"),
    "original LLaVA": (
        lambda base: edit(base / "config.json", model_type="llava_llama"),
        ValueError,
        "'llava_llama'.*known are.*converted",
    ),
    "code": (
        lambda base: edit(base / "config.json", auto_map={"AutoModel": "evil.Model"}),
        ValueError,
        "wants to run its own code",
    ),
    "no checkpoint": (lambda base: (base / "config.json").unlink(), FileNotFoundError, "no config.json"),
    "no image processor": (
        lambda base: (base / "processor_config.json").unlink(),
        FileNotFoundError,
        "no image processor ",
    ),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), FileNotFoundError, "no tokenizer "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_load_refuses_is_refused(name, base, tmp_path):
    """A base that may run code, or that is not whole, would be read here although `load` refuses it."""
    harm, kind, words = REFUSED[name]
    harm(base)
    for call in (
        lambda: add_tokens_to_checkpoint(base, tmp_path / "out"),
        lambda: load(base, require_tokens=False),
    ):
        with pytest.raises(kind, match=words):
            call()
    assert not (tmp_path / "out").exists()


def test_a_class_that_nobody_knows(base, tmp_path):
    """A misspelt name in `architectures` would end in an AttributeError of transformers."""
    edit(base / "config.json", architectures=["LlavaForEverything"])
    add_tokens_to_checkpoint(base, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "LlavaForConditionalGeneration"
    ]


@pytest.mark.parametrize("name", ["", " ", "./nowhere", "nowhere"])
def test_missing_bases_are_named(name, tmp_path):
    """A misspelt folder would be looked for on the network, and none at all be the current one."""
    with pytest.raises((ValueError, FileNotFoundError), match=r"name is empty|there is no folder"):
        add_tokens_to_checkpoint(name, tmp_path / "out")


def test_any_seed_is_taken(base, tmp_path):
    """A large seed would overflow in torch, after the whole model was read."""
    add_tokens_to_checkpoint(base, tmp_path / "out", seed=10**20)


@pytest.mark.parametrize("init", [{"<NOPE>": "mean"}, "", {"</CN>": ""}])
def test_a_wrong_start_is_refused_before_the_weights_are_read(init, base, tmp_path, monkeypatch):
    """A misspelt tag would be found after minutes of reading a large base."""
    monkeypatch.setattr(adding, "load_weights", None)
    with pytest.raises(ValueError, match=r"init names <NOPE>|has no tokens"):
        add_tokens_to_checkpoint(base, tmp_path / "out", init=init)
