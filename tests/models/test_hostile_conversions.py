"""Without these, `convert` would end in a traceback, or never, on a checkpoint that a stranger made."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import reverse.models.processors.template_checks as template_checks
from reverse.files.atomic_write import check_new
from reverse.models import load
from reverse.models.checkpoints.fingerprint import _read_header_and_tails
from reverse.models.conversion.converter import convert
from tests.models import original as layout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(full checkpoint, tower) of an original LLaVA; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    pieces, rows = layout.write_vicuna_tokenizer(root / "src")
    parts = layout.make(rows, pieces.encode, bos=1)
    layout.write_full(parts, root / "src", kind="safetensors", shards=2)
    return root / "src", layout.write_tower(parts, root / "tower")


@pytest.fixture
def folders(whole, tmp_path):
    """(full checkpoint, tower) that may be spoilt."""
    return [shutil.copytree(place, tmp_path / place.name) for place in whole]


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def config(**changes):
    return lambda src, tower: edit(src / "config.json", lambda content: content.update(changes))


def of_tower(**changes):
    return lambda src, tower: edit(
        tower / "config.json", lambda content: content["vision_config"].update(changes)
    )


def prefixed(prefix):
    def spoil(src, tower):
        index = json.loads((src / "model.safetensors.index.json").read_text())
        for name in set(index["weight_map"].values()):
            tensors = load_file(src / name)
            save_file({prefix + key: value for key, value in tensors.items()}, src / name)
        index["weight_map"] = {prefix + key: file for key, file in index["weight_map"].items()}
        (src / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def index(file):
    def change(content):
        content["weight_map"]["lm_head.weight"] = file

    return lambda src, tower: edit(src / "model.safetensors.index.json", change)


HOSTILE = {
    "nested JSON": (
        lambda src, tower: (src / "config.json").write_text('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}"),
        r"config.json is damaged .*nested",
    ),
    "no heads": (config(num_attention_heads=0), r"num_attention_heads=0, which must be"),
    "10 million layers": (config(num_hidden_layers=10**7), r"num_hidden_layers=10000000, which must be"),
    "900 layers": (config(num_hidden_layers=900), r"asks for 90\d layers, and the weights hold \d+ tensors"),
    "a width that is a list": (config(hidden_size=[8]), r"hidden_size=\[8\], which must be"),
    "an epsilon that is a text": (config(rms_norm_eps="x"), r"config.json describes no model|rms_norm_eps"),
    "patches of nothing": (of_tower(patch_size=0), r"patch_size=0, which must be"),
    "a deep tower": (of_tower(num_hidden_layers=10**7), r"num_hidden_layers=10000000, which must be"),
    "no heads in the tower": (of_tower(num_attention_heads=0), r"num_attention_heads=0, which must be"),
    "pictures that are a list": (
        lambda src, tower: (tower / "preprocessor_config.json").write_text("[]"),
        r"preprocessor_config.json holds no JSON object",
    ),
    "no spread": (
        lambda src, tower: edit(tower / "preprocessor_config.json", lambda c: c.update(image_std=[0, 1, 1])),
        r"image_std=\[0, 1, 1\], which must be .*above 0",
    ),
    "a path that leaves": (index("../x.safetensors"), r"lies in '../x.safetensors', which is not a file"),
    "a compiled model": (prefixed("_orig_mod."), r"with '_orig_mod\.' .*unwrap it"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_originals_are_refused(kind, folders, tmp_path):
    """Each kind ended in a traceback, in hours of building, or outside of the folder."""
    spoil, words = HOSTILE[kind]
    src, tower = folders
    spoil(src, tower)
    with pytest.raises(ValueError, match=words):
        convert(src, tmp_path / "out", vision=tower)
    assert not (tmp_path / "out").exists()


def test_a_good_one_is_converted_and_loads(whole, tmp_path):
    """The checks would refuse what they are to protect."""
    src, tower = whole
    convert(src, tmp_path / "out", vision=tower)
    load(tmp_path / "out")


def test_an_endless_template_is_refused(tmp_path, monkeypatch):
    """`convert` renders the tokenizer's own template to compare it with Llama-3.1's."""
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer, bos = layout.write_llama_tokenizer(tmp_path / "src", loops)
    parts = layout.make(len(tokenizer), None, bos=bos)
    tower = layout.write_tower(parts, tmp_path / "tower")
    layout.write_full(parts, tmp_path / "src")
    monkeypatch.setattr(template_checks, "_CPU_SECONDS", 1)
    with pytest.raises(ValueError, match=r"chat template .*does not end within"):
        convert(tmp_path / "src", tmp_path / "out", vision=tower)


def test_the_fingerprint_bounds_a_header(tmp_path):
    """A file that says it has a header of 2**60 bytes would be read until memory is full."""
    (tmp_path / "a.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with (tmp_path / "a.safetensors").open("rb") as stream:
        with pytest.raises(ValueError, match=r"a header of 1,152,[\d,]+ bytes: they are damaged"):
            list(_read_header_and_tails(stream))


def test_places_where_nothing_can_be_written(tmp_path):
    """Hours of merging would end in NotADirectoryError, or in a folder that replaces a link."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=r"would lie in .*file', a file: name another"):
        check_new(tmp_path / "file" / "out")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match=r"is a symbolic link: name a folder"):
        check_new(tmp_path / "link")
    check_new(tmp_path / "deep" / "out")
