"""Hostile checkpoints: one thing wrong with a copy of a bundled model, then `reverse.load`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import reverse
from tests.bad_inputs.judging import Entry
from tests.bad_inputs.world import World

SLOW = "".join(f"{{% for {name} in range(10000) %}}" for name in "abc") + "{% endfor %}" * 3


def edit_json(folder: Path, name: str, keys: str, value: Any) -> None:
    """Put `value` at "a.b.c" of a JSON file; `...` takes the key out."""
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    holder, (*above, last) = content, keys.split(".")
    for key in above:
        holder = holder[key]
    if value is ...:
        holder.pop(last)
    else:
        holder[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def write(name: str, data: bytes | str, folder: Path) -> None:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any], folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(name for name in tensors if part in name)


def drop(part: str, tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, part)
    del tensors[name]


def rename_all(prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[prefix + name] = tensors.pop(name)


def reshape(part: str, tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, part)
    tensors[name] = tensors[name][:-1].contiguous()


def spoil(part: str, tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, part)].fill_(float("nan"))


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["something.else.weight"] = torch.zeros(3)


def index(file: str, folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def entries() -> Iterator[Entry]:
    config = partial(edit_json, name="config.json")
    changes: list[tuple[str, Callable[[Path], Any]]] = [
        ("config.json is missing", partial(remove, "config.json")),
        ("config.json is empty", partial(write, "config.json", b"")),
        ("config.json is a list", partial(write, "config.json", b"[]")),
        ("config.json is null", partial(write, "config.json", b"null")),
        ("config.json is cut", lambda f: write("config.json", (f / "config.json").read_bytes()[:99], f)),
        ("config.json is Latin-1", partial(write, "config.json", b'{"a": "\xe9"}')),
        ("config.json is 100,000 brackets", partial(write, "config.json", b"[" * 100_000)),
        (
            "config.json is nested",
            lambda f: config(f, keys="extra", value=json.loads('{"a":' * 400 + "1" + "}" * 400)),
        ),
        ("weights are missing", partial(remove, "model.safetensors")),
        ("weights are empty", partial(write, "model.safetensors", b"")),
        ("weights are a text", partial(write, "model.safetensors", b"not weights at all, really")),
        (
            "weights are cut",
            lambda f: write("model.safetensors", (f / "model.safetensors").read_bytes()[:-5000], f),
        ),
        (
            "weights with a header of 2**60 bytes",
            partial(write, "model.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
        ),
        ("tokenizer.json is missing", partial(remove, "tokenizer.json")),
        ("tokenizer.json is empty", partial(write, "tokenizer.json", b"")),
        ("tokenizer.json is an object", partial(write, "tokenizer.json", b"{}")),
        ("tokenizer.json is a list", partial(write, "tokenizer.json", b"[]")),
        ("tokenizer_config.json is a list", partial(write, "tokenizer_config.json", b"[]")),
        ("tokenizer_config.json is null", partial(write, "tokenizer_config.json", b"null")),
        ("processor_config.json is a list", partial(write, "processor_config.json", b"[]")),
        ("processor_config.json is null", partial(write, "processor_config.json", b"null")),
        ("processor_config.json is cut", partial(write, "processor_config.json", b'{"image_')),
        ("processor_config.json is missing", partial(remove, "processor_config.json")),
        ("generation_config.json is a list", partial(write, "generation_config.json", b"[]")),
        ("a head is missing", partial(edit_tensors, partial(drop, "embed_tokens"))),
        ("a matrix of an MLP is missing", partial(edit_tensors, partial(drop, "mlp.down_proj"))),
        ("a matrix of the tower is missing", partial(edit_tensors, partial(drop, "vision"))),
        ("a matrix of the projector is missing", partial(edit_tensors, partial(drop, "projector"))),
        ("an unknown tensor", partial(edit_tensors, add)),
        ("tensors with a prefix", partial(edit_tensors, partial(rename_all, "_orig_mod."))),
        ("tensors with another prefix", partial(edit_tensors, partial(rename_all, "module."))),
        ("a tensor of another shape", partial(edit_tensors, partial(reshape, "mlp.down_proj"))),
        ("embedding rows are missing", partial(edit_tensors, partial(reshape, "embed_tokens"))),
        ("an index that leaves the folder", partial(index, "../model.safetensors")),
        ("an index with an absolute path", partial(index, "/etc/passwd")),
        ("an index at a pickle", partial(index, "pytorch_model.bin")),
        ("an index at a missing file", partial(index, "model-00002-of-00002.safetensors")),
        ("an index that is a list", partial(write, "model.safetensors.index.json", b"[]")),
    ]
    for keys, values in CONFIG.items():
        for value in values:
            shown = "taken out" if value is ... else repr(value)
            changes.append((f"{keys} is {shown[:40]}", partial(config, keys=keys, value=value)))
    for name, change in changes:
        yield Entry(f"checkpoint: {name}", partial(load, change, "tiny-llava"), ("model", "config.json"))
    for keys, values in QWEN.items():
        for value in values:
            change = partial(config, keys=keys, value=value)
            yield Entry(
                f"checkpoint of Qwen: {keys} is {value!r:.40}", partial(load, change, "tiny-qwen"), ("model",)
            )
    for name, template in TEMPLATES.items():
        change = partial(write, "chat_template.jinja", template)
        yield Entry(
            f"checkpoint: a chat template {name}", partial(answer, change, "tiny-llava"), ("template",)
        )


CONFIG: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2", None, 5, ..., "llava_next"),
    "architectures": (),
    "auto_map": ({"AutoModel": "evil.Model"},),
    "text_config": ([], None, 5, "llama", ...),
    "vision_config": ([], None, 5, ...),
    "text_config.num_attention_heads": (0, -1, 3, "4", None, 10**9, 1.5),
    "text_config.num_key_value_heads": (0, 3),
    "text_config.hidden_size": (0, -8, "64", 10**9, 7),
    "text_config.num_hidden_layers": (0, -1, 10**7, "2", 99),
    "text_config.vocab_size": (0, -1, 10**10, 5),
    "text_config.intermediate_size": (0, -1, 10**10),
    "text_config.max_position_embeddings": (0, -1, "many"),
    "text_config.hidden_act": ("nonsense", 5),
    "text_config.rms_norm_eps": ("small", float("nan")),
    "vision_config.patch_size": (0, -1, "14", 10**6),
    "vision_config.image_size": (0, -1, 10**7),
    "vision_config.num_hidden_layers": (0, 10**7),
    "vision_config.hidden_size": (0, 7),
    "image_token_id": (-1, 10**9, "x"),
    "image_token_index": (-1, 10**9, "x"),
    "vision_feature_layer": (99, "last"),
    "vision_feature_select_strategy": ("nonsense",),
    "dtype": ("float99",),
    "reverse": ({"threshold": 3}, {"threshold": "a"}, {"threshold": float("nan")}, [], "x"),
}
QWEN: dict[str, tuple[Any, ...]] = {
    "vision_config.patch_size": (0, -1),
    "vision_config.spatial_merge_size": (0, 3),
    "vision_config.depth": (0, 10**7),
    "vision_config.num_heads": (0, 3),
    "vision_config.window_size": (0, -1),
    "text_config.rope_parameters": ({}, None, 5),
    "text_config.num_hidden_layers": (10**7,),
}
TEMPLATES = {
    "that loops": SLOW,
    "that is broken": "{% for m in messages %}",
    "that calls what is not there": "{{ messages.nothing.at.all() }}",
    "that is empty": "",
    "that says nothing of the question": "USER: hello ASSISTANT:",
    "that reaches into Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "that grows without end": (
        "{% set ns = namespace(x='aaaaaaaa') %}"
        "{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
    ),
}


def load(change: Callable[[Path], Any], name: str, world: World) -> Any:
    folder = world.copy_of_model(name)
    try:
        change(folder)
        return reverse.load(folder)
    finally:
        _remove(folder)


def answer(change: Callable[[Path], Any], name: str, world: World) -> Any:
    """A template may be judged at load or when the first prompt is written."""
    folder = world.copy_of_model(name)
    try:
        change(folder)
        model, processor = reverse.load(folder)
        return reverse.generate(model, processor, world["kitchen"], max_new_tokens=2)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
