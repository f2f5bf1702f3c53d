"""Without these, a stranger's checkpoint could end in a traceback, run for hours, or lead out of its folder.

Every kind is refused before a model is built, by a message that names file, value and remedy.
"""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import reverse.models.checkpoints.loading as loading
import reverse.models.processors.template_checks as template_checks
from reverse.models import add_tokens_to_checkpoint, load, prepare_inputs
from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint
from reverse.models.families import LLAVA


@pytest.fixture(params=["llava", "qwen"])
def saved(request, saved_checkpoints):
    """A whole checkpoint of each family."""
    return saved_checkpoints / request.param


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that may be spoilt; its weights are links, so copying costs nothing."""
    (tmp_path / "copy").mkdir()
    for file in saved.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, tmp_path / "copy" / file.name)
        else:
            shutil.copy(file, tmp_path / "copy")
    return tmp_path / "copy"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def set_config(**changes):
    """A spoiler that sets fields of config.json; `text__x` and `vision__x` are those of the sections."""

    def spoil(folder):
        def change(config):
            for name, value in changes.items():
                section, _, field = name.partition("__")
                place = config[f"{section}_config"] if field else config
                place[field or name] = value

        edit(folder / "config.json", change)

    return spoil


def set_file(name, **changes):
    return lambda folder: edit(folder / name, lambda content: content.update(changes))


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def set_tower(llava, qwen, value):
    """As `set_config`, of a field that has another name in each family's tower."""

    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        field = llava if config["model_type"] == "llava" else qwen
        set_config(**{f"vision__{field}": value})(folder)

    return spoil


def set_pictures(**changes):
    def spoil(folder):
        edit(folder / "processor_config.json", lambda content: content["image_processor"].update(changes))

    return spoil


def index(weight_map):
    """A spoiler that replaces the weights by an index."""

    def spoil(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )

    return spoil


def nested(depth):
    return "[" * depth + "]" * depth


def pipe(name):
    def spoil(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def header(text):
    """A spoiler that writes weights with the header `text`."""

    def spoil(folder):
        (folder / "model.safetensors").unlink()  # a link to the others'
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode())

    return spoil


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BAD = "must be a whole number from"
HOSTILE = {
    # configuration: what it is
    "nested config": (
        write("config.json", '{"a": ' + nested(100_000) + "}"),
        r"config.json is damaged .*nested",
    ),
    "a config of 100 levels": (write("config.json", '{"a": ' + nested(100) + "}"), r"nested more than 64"),
    "a pipe as config": (pipe("config.json"), r"config.json"),
    "text_config a list": (set_config(text_config=[1]), r"config.json has text_config=\[1\], .*an object"),
    "text_config a text": (
        set_config(text_config="llama"),
        r"has text_config='llama', which must be an object",
    ),
    "vision_config a number": (set_config(vision_config=7), r"has vision_config=7, which must be an object"),
    "model_type a list": (set_config(model_type=["llava"]), r"unknown architecture"),
    "a decoder that nobody knows": (set_config(text__model_type="nothing"), None),
    # configuration: numbers
    "no heads": (
        set_config(text__num_attention_heads=0),
        rf"text_config.num_attention_heads=0, which {BAD} 1",
    ),
    "heads a text": (set_config(text__num_attention_heads="4"), rf"num_attention_heads='4', which {BAD}"),
    "heads true": (set_config(text__num_attention_heads=True), rf"num_attention_heads=True, which {BAD}"),
    "heads that do not divide": (
        set_config(text__num_attention_heads=3, text__num_key_value_heads=3, text__head_dim=None),
        r"num_attention_heads=3, which must divide|not a multiple of the number of attention heads \(3\)",
    ),
    "heads that share nothing": (
        set_config(text__num_key_value_heads=3),
        r"num_key_value_heads=3, which must divide num_attention_heads=\d+",
    ),
    "heads of the tower": (
        set_tower("num_attention_heads", "num_heads", 7),
        r"vision_config.num_heads=7, which must divide|not a multiple of the number of attention heads \(7\)",
    ),
    "10 million layers": (
        set_config(text__num_hidden_layers=10**7),
        rf"num_hidden_layers=10000000, which {BAD}",
    ),
    "more layers than tensors": (
        set_config(text__num_hidden_layers=900, text__layer_types=None),
        r"asks for 90\d layers, .* hold \d+ tensors",
    ),
    "one layer more": (
        set_config(text__num_hidden_layers=3, text__layer_types=None),
        r"lacks \d+ tensors .*layers.2",
    ),
    "10 million blocks": (set_tower("num_hidden_layers", "depth", 10**7), rf"=10000000, which {BAD}"),
    "no width": (set_config(text__hidden_size=0), rf"hidden_size=0, which {BAD}"),
    "a negative width": (set_config(text__hidden_size=-64), rf"hidden_size=-64, which {BAD}"),
    "a width with a fraction": (set_config(text__hidden_size=64.5), rf"hidden_size=64.5, which {BAD}"),
    "a width of 10,000 digits": (
        lambda folder: (folder / "config.json").write_text(
            re.sub(
                r'"hidden_size": \d+', '"hidden_size": 1' + "0" * 4000, (folder / "config.json").read_text()
            )
        ),
        rf"hidden_size=a number of \d+ bits, which {BAD}",
    ),
    "a vocabulary of 10 million": (
        set_config(text__vocab_size=10**7),
        r"of another shape .*\(10000000, \d+\) by",
    ),
    "no vocabulary": (set_config(text__vocab_size=0), rf"vocab_size=0, which {BAD}"),
    "patches of nothing": (set_config(vision__patch_size=0), rf"vision_config.patch_size=0, which {BAD}"),
    "patches that are a list": (
        set_config(vision__patch_size=[14, 14]),
        rf"patch_size=\[14, 14\], which {BAD}",
    ),
    "an epsilon that is a text": (set_config(text__rms_norm_eps="small"), r"rms_norm_eps='small', .*above 0"),
    "an infinite epsilon": (
        lambda folder: (folder / "config.json").write_text(
            re.sub(
                r'"rms_norm_eps": [\d.e-]+', '"rms_norm_eps": Infinity', (folder / "config.json").read_text()
            )
        ),
        r"rms_norm_eps=inf, which must be a number above 0",
    ),
    "a dtype that is none": (set_config(dtype="banana"), r"dtype='banana', which must be float32"),
    "a dtype of whole numbers": (set_config(dtype="int8"), r"dtype='int8', which must be float32"),
    # what would fetch, run or lead elsewhere
    "code": (set_config(auto_map={"AutoModel": "evil.Model"}), r"wants to run its own code"),
    "weights elsewhere": (
        set_config(transformers_weights="../evil.bin"),
        r"names its weights itself .*evil.bin",
    ),
    "a kernel of a hub": (set_config(text___attn_implementation="evil/kernel"), r"would fetch and run code"),
    "a quantizer that is none": (
        set_config(quantization_config=[1]),
        r"quantization_config=\[1\], .*an object",
    ),
    "an index upwards": (
        index({"a": "../other.safetensors"}),
        r"'a' lies in '../other.safetensors', which is not a file",
    ),
    "an index to /etc": (
        index({"a": "/etc/passwd"}),
        r"'a' lies in '/etc/passwd', which is not a file of that folder",
    ),
    "an index to a pickle": (
        index({"a": "pytorch_model.bin"}),
        r"'pytorch_model.bin', which is not a safetensors file",
    ),
    "an index to a number": (index({"a": 7}), r"'a' lies in 7, which is not a file of that folder"),
    "an index to nothing": (
        index({"a": "b.safetensors"}),
        r"names 1 shards, and 1 are not there \(b.safetensors\)",
    ),
    "an index without metadata": (
        lambda folder: (
            index({"a": "model-00001-of-00001.safetensors"})(folder),
            edit(folder / "model.safetensors.index.json", lambda content: content.pop("metadata")),
        ),
        r"index.json has no metadata, .*write \"metadata\": \{\}",
    ),
    "an index without a map": (index([]), r"index.json has no weight_map of tensors"),
    "a nested index": (
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            write("model.safetensors.index.json", '{"weight_map": ' + nested(10**5) + "}")(folder),
        ),
        r"index.json is damaged .*nested",
    ),
    "weights that are a pipe": (pipe("model.safetensors"), r"no \*.safetensors"),
    "a header of 2**60 bytes": (
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}"),
        ),
        r"are damaged or cut off",
    ),
    "a nested header": (header('{"a": ' + nested(10**5) + "}"), r"are damaged or cut off"),
    "offsets beyond the file": (
        header('{"a": {"dtype": "F32", "shape": [9999999999], "data_offsets": [0, 39999999996]}}'),
        r"are damaged or cut off",
    ),
    # tokenizer, processor, template
    "a nested tokenizer": (
        write("tokenizer.json", '{"a": ' + nested(10**5) + "}"),
        r"tokenizer.json is damaged",
    ),
    "a tokenizer that is a list": (write("tokenizer.json", "[]"), r"tokenizer.json holds no JSON object"),
    "a tokenizer of something else": (
        set_file("tokenizer.json", model={"type": "X"}),
        r"settings .*are damaged",
    ),
    "nested tokenizer settings": (
        write("tokenizer_config.json", '{"a": ' + nested(10**5) + "}"),
        r"tokenizer_config.json is damaged .*nested",
    ),
    "a tokenizer's class as a number": (set_file("tokenizer_config.json", model_max_length="x"), None),
    "a processor that is a list": (
        write("processor_config.json", "[]"),
        r"processor_config.json holds no JSON",
    ),
    "pictures that are a text": (
        set_file("processor_config.json", image_processor="x"),
        r"image_processor='x'",
    ),
    "no spread": (set_pictures(image_std=[0, 0, 0]), r"image_std=\[0, 0, 0\], .*above 0"),
    "a mean that is not a number": (
        set_pictures(image_mean=["a"]),
        r"image_mean=\['a'\], which must be one number",
    ),
    "a picture of 10**9 pixels a side": (
        set_pictures(size={"shortest_edge": 10**9, "longest_edge": 10**9}),
        r"size.shortest_edge=1000000000, which must be a whole number from 1 to",
    ),
    "an end that is a text": (
        set_file("generation_config.json", eos_token_id="</s>"),
        r"eos_token_id='</s>'",
    ),
    "damaged generation settings": (
        write("generation_config.json", "{"),
        r"generation_config.json is damaged",
    ),
    "a template of nested loops": (
        write("chat_template.jinja", LOOPS),
        r"chat template .*does not end within",
    ),
    "a template that grows": (
        write("chat_template.jinja", "{% set a = 'x' * 99999999999 %}{{ a }}"),
        r"chat template .*memory",
    ),
    "a template that writes a lot": (
        write("chat_template.jinja", "{% for a in range(999) %}{{ 'x' * 9999 }}{% endfor %}"),
        r"chat template .*writes [\d,]+ characters for a short chat",
    ),
    "a template that is none": (
        write("chat_template.jinja", "{% for"),
        r"chat template .*is no valid template",
    ),
}


# What is read before the family is known, or alike for both, is tried with one.
ONE = [kind for kind in HOSTILE if re.search("nested|pipe|index|header|offsets|template|tokenizer", kind)]
CASES = [
    (kind, family) for kind in HOSTILE for family in ("llava", "qwen") if family == "llava" or kind not in ONE
]


@pytest.mark.parametrize(("kind", "saved"), CASES, indirect=["saved"])
def test_hostile_checkpoints_are_refused(kind, folder, monkeypatch):
    """Tracebacks, hours of building, files of other folders: each kind was tried against `load`."""
    spoil, words = HOSTILE[kind]
    spoil(folder)
    monkeypatch.setattr(template_checks, "_CPU_SECONDS", 1)
    if words is None:  # harmless, or refused: both are fine, but no other end
        words = ""
    monkeypatch.setattr(loading.transformers.PreTrainedModel, "from_pretrained", None)  # before any weight
    try:
        load(folder)
    except (ValueError, FileNotFoundError) as error:
        assert re.search(words, str(error), re.DOTALL), str(error)[:500]
        assert len(str(error)) < 1500
    except TypeError as error:
        assert not words and "'NoneType' object is not callable" in str(error)
    else:
        pytest.fail("it was loaded")


@pytest.mark.parametrize("saved", ["llava"], indirect=True)
def test_a_template_that_hangs_on_some_chats_is_stopped(folder, monkeypatch, picture):
    """What no chat of the trial reaches (`{% if "dog" in … %}`) would hang in the middle of decoding."""
    template = (folder / "chat_template.jinja").read_text()
    loops = "{% if 'hang' in messages[0]['content'] | string %}" + LOOPS + "{% endif %}"
    (folder / "chat_template.jinja").write_text(loops + template)
    _, processor = load(folder)
    monkeypatch.setattr(template_checks, "RENDER_SECONDS", 0.2)
    prepare_inputs(processor, [picture()], ["go on"], LLAVA)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"chat template does not end within 0.2 seconds .*1 messages"):
            prepare_inputs(processor, [picture()], ["hang"], LLAVA)
    prepare_inputs(processor, [picture()], ["go on"], LLAVA)


def test_commands_refuse_them_too(folder, tmp_path):
    """`tokens add` and the fingerprint would read what `load` refuses."""
    set_config(text__num_attention_heads=0)(folder)
    for call in (
        lambda: add_tokens_to_checkpoint(folder, tmp_path / "out"),
        lambda: checkpoint_fingerprint(folder),
    ):
        with pytest.raises(ValueError, match=r"num_attention_heads=0"):
            call()


def shard(folder):
    """Two shards and an index instead of one file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def link_as_a_hub_does(folder):
    """Every file becomes a link to a blob with a hash for a name, as in the hub's cache."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number:040x}")
        file.symlink_to(f"../blobs/{number:040x}")


ALLOWED = {
    "shards": [shard],
    "a hub's snapshot": [link_as_a_hub_does],
    "a hub's snapshot of shards": [shard, link_as_a_hub_does],
    "a template with small loops": [
        lambda folder: (folder / "chat_template.jinja").write_text(
            "{% for i in range(3) %}{% endfor %}" + (folder / "chat_template.jinja").read_text()
        )
    ],
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_good_checkpoints_still_load(kind, folder, saved):
    """The checks would refuse what users have: shards, a hub's links, templates of their own."""
    for change in ALLOWED[kind]:
        change(folder)
    model, expected = load(folder)[0], load(saved)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def in_a_hubs_cache(folder, cache):
    """The files of `folder` as `hf_hub_download` keeps those of owner/name."""
    place = cache / "models--owner--name"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    (place / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, place / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


@pytest.mark.parametrize("change", [lambda folder: None, shard], ids=["one file", "shards"])
def test_hub_ids_load_from_the_cache(change, folder, saved, tmp_path):
    """A checkpoint of the hub would be looked for in the wrong place, or its links be taken for an attack."""
    change(folder)
    in_a_hubs_cache(folder, tmp_path / "cache")
    options = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    model, expected = load("owner/name", **options)[0], load(saved)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


HUB = [
    "no heads",
    "an index upwards",
    "an index to a pickle",
    "a nested tokenizer",
    "a template of nested loops",
]


@pytest.mark.parametrize("kind", HUB)
@pytest.mark.parametrize("saved", ["llava"], indirect=True)
def test_hub_ids_are_checked_as_folders_are(kind, folder, tmp_path, monkeypatch):
    """What is refused in a folder would be let in from the hub."""
    spoil, words = HOSTILE[kind]
    spoil(folder)
    monkeypatch.setattr(template_checks, "_CPU_SECONDS", 1)
    in_a_hubs_cache(folder, tmp_path / "cache")
    with pytest.raises((ValueError, FileNotFoundError), match="(?s)" + words):
        load("owner/name", cache_dir=str(tmp_path / "cache"), local_files_only=True)


@pytest.mark.parametrize("name", loading.BUNDLED)
def test_the_bundled_models_load(name):
    """The package's own models would be refused by a check."""
    load(name)
