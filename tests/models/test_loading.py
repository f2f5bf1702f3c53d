"""Without these, a wrong, incomplete or dangerous checkpoint would load, or a good one would not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from transformers import AddedToken, AutoProcessor

import reverse.models.checkpoints.loading as loading
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.model_building import building_alone
from reverse.models import default_threshold, load, set_default_threshold
from reverse.models.value_head import ValueHead
from reverse.tokens import TAGS, add_tokens, find_token_ids

TESTS = Path(__file__).resolve().parent.parent


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module", params=["llava", "qwen"])
def saved(request, tiny, tmp_path_factory):
    """A checkpoint on disk, and the model and processor it was made of."""
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = tiny(request.param)
    set_default_threshold(model, 0.05)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture
def untagged(tmp_path):
    """A LLaVA without the three tokens, on disk."""
    model, processor = build_tiny_llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_what_was_saved_is_loaded(saved, picture):
    """Weights, pixels, template or threshold would change between saving and loading."""
    folder, model, processor = saved
    again, loaded = load(folder)
    assert type(again) is type(model) and not again.training
    assert default_threshold(again) == 0.05
    assert find_token_ids(loaded) == find_token_ids(processor)
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.chat_template == processor.chat_template
    text = processor.image_token + " a dog"
    inputs, expected = (p(images=[picture()], text=[text], return_tensors="pt") for p in (loaded, processor))
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_saving_what_was_loaded_loads_again(saved, tmp_path):
    """A fine-tuned model would be lost at its first save."""
    model, processor = load(saved[0])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loaded = load(tmp_path)
    assert find_token_ids(loaded) == find_token_ids(processor)
    assert default_threshold(again) == 0.05


def test_transformers_alone_loads_what_we_save(saved):
    """Saved without torchvision there would be no video settings, which stock transformers wants."""
    processor = AutoProcessor.from_pretrained(saved[0])
    assert find_token_ids(processor) == find_token_ids(saved[2])


def test_dtype_and_attention_are_passed_on(saved):
    """The model would take twice the memory, or the slow path."""
    model, _ = load(saved[0], dtype=torch.bfloat16, attn_implementation="eager", device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_stored_dtype_is_the_default(tmp_path, tiny):
    """A bfloat16 checkpoint would be blown up to float32."""
    model, processor = tiny("qwen", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load(tmp_path)[0].dtype == torch.bfloat16


def test_videos_are_refused_with_a_reason():
    """The user would see a missing attribute."""
    _, processor = build_tiny_qwen()
    with pytest.raises(ImportError, match="pip install torchvision"):
        processor(text=["<|video_pad|>"], videos=[[0]])


def test_missing_tokens_name_the_remedy(untagged):
    """A base model would be decoded with checking that can never fire."""
    with pytest.raises(ValueError, match=r"<SPAN>.*reverse tokens add BASE OUT"):
        load(untagged)
    _, processor = load(untagged, require_tokens=False)
    assert "<SPAN>" not in processor.tokenizer.get_vocab()


def test_special_tags_are_made_ordinary(untagged):
    """`skip_special_tokens=True` would take the tags out unread."""
    model, processor = load(untagged, require_tokens=False)
    processor.tokenizer.add_tokens([AddedToken(tag, special=True) for tag in TAGS])
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(untagged)
    processor.save_pretrained(untagged)
    _, again = load(untagged)
    ids = list(find_token_ids(again))
    assert again.decode(ids, skip_special_tokens=True) == "".join(TAGS)


def test_tokens_without_rows_are_refused(untagged, tiny):
    """A tokenizer copied from another checkpoint would index beyond the embeddings."""
    tiny("llava")[1].tokenizer.save_pretrained(untagged)
    with pytest.raises(ValueError, match="embedding rows"):
        load(untagged)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "nowhere"])
def test_a_missing_folder_is_no_hub_id(path):
    """transformers would ask the hub for it and complain of credentials."""
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(path)


def test_a_hub_id_offline_says_so():
    """Without a network the reason would be hidden in a traceback."""
    with pytest.raises(FileNotFoundError, match="no config"):
        load("nobody/nothing", local_files_only=True)


def test_a_folder_without_a_checkpoint(tmp_path):
    """The missing file must be named."""
    with pytest.raises(FileNotFoundError, match="no config"):
        load(tmp_path)


def test_a_missing_bundled_model(monkeypatch, tmp_path):
    """An installation without assets would look for the name on the hub."""
    monkeypatch.setattr(loading, "ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError, match="bundled 'tiny-llava'"):
        load("tiny-llava")


def test_bundled_names_lead_to_the_assets(monkeypatch, tmp_path, tiny):
    """`load("tiny-llava")` is the first line a new user types."""
    monkeypatch.setattr(loading, "ASSETS", tmp_path)
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path / "tiny-llava")
    processor.save_pretrained(tmp_path / "tiny-llava")
    monkeypatch.chdir(tmp_path.parent)
    assert find_token_ids(load("tiny-llava")[1]) == find_token_ids(processor)


def test_unknown_architectures_are_refused(untagged):
    """An original LLaVA checkpoint would load as the base model without its projector."""
    edit_config(untagged, model_type="llava_llama", architectures=["LlavaLlamaForCausalLM"])
    with pytest.raises(ValueError, match=r"'llava_llama'.*known are.*converted"):
        load(untagged)


def test_code_in_a_checkpoint_is_refused(untagged):
    """Loading a model would run a stranger's program."""
    edit_config(untagged, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ValueError, match="wants to run its own code"):
        load(untagged)
    with pytest.raises(TypeError, match="trust_remote_code"):
        load(untagged, trust_remote_code=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pt"])
def test_pickled_weights_are_refused(untagged, name):
    """Unpickling runs whatever the file says."""
    (untagged / "model.safetensors").rename(untagged / name)
    with pytest.raises(ValueError, match=rf"pickled weights only \({name}\)"):
        load(untagged, require_tokens=False)


def test_missing_weights_are_named(untagged):
    """An interrupted download must be told from a pickled one."""
    (untagged / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors"):
        load(untagged, require_tokens=False)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_config_names_its_file(untagged, text):
    """The error would be a character number, of one of six files."""
    (untagged / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json .*fetch or save the checkpoint again"):
        load(untagged)


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json"])
def test_missing_and_broken_settings_are_named(saved, file, tmp_path):
    """transformers would ask for sentencepiece, or for the hub."""
    folder = shutil.copytree(saved[0], tmp_path / "copy")
    (folder / file).write_text("{")
    with pytest.raises((ValueError, OSError), match=r"copy.* ((is|are) damaged|is not a valid JSON file)"):
        load(folder)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"copy.* has no .*{file}"):
        load(folder)


@pytest.mark.parametrize("section", [{"threshold": "0.1"}, {"threshold": True}, {"threshold": 3}, "0.1"])
def test_a_stored_threshold_is_checked_first(untagged, section):
    """A text would fail in a comparison, at the first answer."""
    edit_config(untagged, reverse=section)
    with pytest.raises(ValueError, match=r"config\.json (gives|has)"):
        load(untagged)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_backend": "foo"}, "image_backend must be 'pil' or 'torchvision', got 'foo'"),
        ({"device": "foo"}, "device 'foo' is not known: this machine has cpu"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not on this machine"),
    ],
)
def test_wrong_options_are_refused_before_the_weights_are_read(saved, monkeypatch, options, words):
    """A backend that is not there would be PIL without a word; a device would fail after minutes."""
    monkeypatch.setattr(loading, "load_weights", None)
    with pytest.raises(ValueError, match=words):
        load(saved[0], **options)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_folder(name, saved, monkeypatch):
    """A variable that is not set would load whatever lies in the current folder."""
    monkeypatch.chdir(saved[0])
    with pytest.raises(ValueError, match=r"name is empty, got .*: name a folder"):
        load(name)


WITHOUT_TORCHVISION = """
import importlib.metadata, importlib.util, sys

class Block:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

sys.meta_path.insert(0, Block)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.startswith("torchvision") else real(name, *a)

from transformers.utils import is_torchvision_available
assert not is_torchvision_available()
import numpy as np, torch
from PIL import Image
from reverse.models import load
from experiments.tiny_models import build_tiny_qwen

folder, out = sys.argv[1:]
model, processor = load(folder)
picture = Image.fromarray(np.load(folder + "/picture.npy"))
inputs = processor(images=[picture], text=[processor.image_token + " a dog"], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
np.save(out + "/logits.npy", logits.numpy())
model.save_pretrained(out)
processor.save_pretrained(out)
load(out)
build_tiny_qwen()
assert "torchvision" not in sys.modules
"""


def test_all_works_without_torchvision(saved, picture, tmp_path):
    """Qwen2.5-VL's processor would not load, for the sake of videos nobody wants; pixels must be the same."""
    import numpy as np

    folder, model, processor = saved
    np.save(folder / "picture.npy", np.asarray(picture()))
    command = [sys.executable, "-c", WITHOUT_TORCHVISION, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    inputs = processor(images=[picture()], text=[processor.image_token + " a dog"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected, atol=1e-5)
    assert find_token_ids(load(tmp_path)[1]) == find_token_ids(processor)
    assert find_token_ids(AutoProcessor.from_pretrained(tmp_path)) == find_token_ids(processor)


def test_threads_load_one_after_the_other():
    """transformers replaces functions while it builds a model: with two at once heads lost their ties."""

    def is_tied(name):
        model, _ = load(name)
        return model.get_output_embeddings().weight is model.get_input_embeddings().weight

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(is_tied, ["tiny-qwen", "tiny-llava", "tiny-reasoner"] * 3))
    assert found == [True, False, True] * 3


def test_other_threads_do_not_decide_what_heads_and_new_rows_are_made_of():
    """While a thread loads a bfloat16 model, torch's default dtype is that for all threads."""
    models = [build_tiny_llava(seed=3) for _ in range(2)]
    rows = []
    for dtype, (model, processor) in zip((torch.float32, torch.bfloat16), models, strict=True):
        torch.set_default_dtype(dtype)
        try:
            ids = add_tokens(model, processor, seed=5)
            assert ValueHead(4).linear.weight.dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)
        rows.append(model.get_input_embeddings().weight[list(ids)])
    assert torch.equal(*rows)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_may_load_while_its_parent_does():
    """The lock that a thread of the parent holds would never be released in the child."""
    with ThreadPoolExecutor(1) as pool:
        taken, stop = Event(), Event()

        def hold():
            with building_alone():
                taken.set()
                stop.wait(timeout=60)

        held = pool.submit(hold)
        assert taken.wait(timeout=60)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits for ever
            with building_alone():
                os._exit(0)
        _, status = os.waitpid(child, 0)
        stop.set()
        held.result()
    assert status == 0
