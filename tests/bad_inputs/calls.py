"""Wrong arguments of generate, generate_many, stream, retrospective and load, and of their settings."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import reverse
from reverse.models import add_tokens_to_checkpoint, family_of, prepare_inputs
from reverse.models.adapters.merging import merge_adapter
from reverse.models.conversion.converter import convert
from tests.bad_inputs.judging import Entry
from tests.bad_inputs.world import World

HALF = "\ud83d"
BAD_NUMBERS: tuple[Any, ...] = (
    -1,
    math.nan,
    math.inf,
    -math.inf,
    "3",
    "abc",
    None,
    [],
    True,
    1.5,
    10**30,
    {},
    0,
)
# Which of them a setting takes; all others must be refused.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "threshold": (None,),
    "local_attempts": (10**30,),
    "max_attempts": (10**30, 0),
    "max_seconds": (None, 1.5, 0, 10**30),
    "max_extra_tokens": (None, 10**30, 0),
    "temperature_step": (1.5, 10**30, 0),
    "temperature_rise": (1.5, 10**30, 0),
    "hints": (10**30, 0),
    "candidates": (),
    "top_k": (0, 10**30),
    "top_p": (),
    "seed": (-1, None, 0),
    "max_new_tokens": (10**30,),
    "temperature": (1.5,),  # with do_sample
    "batch_size": (10**30,),
}
EITHER = {("seed", "None"), ("seed", "True"), ("temperature", "None")} | {
    (name, repr(10**30)) for name in SETTINGS
}
CHOICES = ("check", "score", "commit", "on_exhausted", "policy", "backend", "mode")
FLAGS = ("yes_no", "open_ended")


def ask(changes: dict[str, Any], world: World, family: str = "llava") -> Any:
    model, processor = world[family]
    settings: dict[str, Any] = {
        "images": world["kitchen"],
        "prompt": "Describe this image.",
        "max_new_tokens": 2,
    }
    return reverse.generate(model, processor, **settings | changes)


def ask_many(requests: Any, changes: dict[str, Any], world: World) -> Any:
    model, processor = world["llava"]
    return list(reverse.generate_many(model, processor, requests, **{"max_new_tokens": 2} | changes))


def ask_stream(changes: dict[str, Any], world: World) -> Any:
    model, processor = world["llava"]
    settings: dict[str, Any] = {"images": world["kitchen"], "max_new_tokens": 2}
    return list(reverse.stream(model, processor, **settings | changes))


def drop_in(settings: dict[str, Any], options: dict[str, Any], world: World) -> Any:
    model, processor = world["llava"]
    inputs = prepare_inputs(processor, [world["kitchen"]], ["Describe this image."], family_of(model))
    decoder = reverse.retrospective(processor, **settings)
    return model.generate(**inputs, custom_generate=decoder, **{"max_new_tokens": 2} | options)


def with_picture(make: Callable[[World], Any], world: World) -> Any:
    return ask({"images": make(world)}, world)


def entries() -> Iterator[Entry]:
    yield from of_settings()
    yield from of_pictures()
    yield from of_prompts()
    yield from of_requests()
    yield from of_checkpoints()


def of_settings() -> Iterator[Entry]:
    for name, good in SETTINGS.items():
        for value in BAD_NUMBERS:
            if (name, repr(value)) in EITHER:
                expected: Any = "either"
            elif any(type(value) is type(each) and repr(value) == repr(each) for each in good):
                expected = "good"
            else:
                expected = "refused"
            changes = {name: value, "do_sample": True} if name == "temperature" else {name: value}
            yield Entry(f"generate({name}={value!r})", partial(ask, changes), (repr(value), name), expected)
    for name in CHOICES:
        for value in ("nonsense", "", None, 3, ["best"]):
            yield Entry(f"generate({name}={value!r})", partial(ask, {name: value}), (repr(value), name))
    for name in FLAGS:
        for value in ("yes", None, 1):
            yield Entry(f"generate({name}={value!r})", partial(ask, {name: value}), (repr(value),))
    others: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("a temperature without sampling", {"temperature": 0.7}, "0.7"),
        ("a misspelt setting", {"treshold": 0.5}, "treshold"),
        ("an option of model.generate()", {"num_beams": 4}, "num_beams"),
        ("its sampling in generation", {"generation": {"temperature": 0.5}}, "temperature"),
        ("its length in generation", {"generation": {"max_length": 5}}, "max_length"),
        ("beams in generation", {"generation": {"num_beams": 2}}, "beam"),
        (
            "a cache that is not ours",
            {"generation": {"cache_implementation": "static"}},
            "cache_implementation",
        ),
        ("an unknown name in generation", {"generation": {"nonsense": 1}}, "nonsense"),
        ("generation that is a list", {"generation": [1]}, "generation"),
        ("a config that is a dict", {"config": {"threshold": 0.5}}, "dict"),
        ("score pair at every token", {"score": "pair", "check": "every_token"}, "pair"),
        ("a stop string that is empty", {"stop_strings": ""}, "stop"),
        ("a stop string that is a number", {"stop_strings": 5}, "5"),
        ("a tag as stop string", {"stop_strings": "<SPAN>"}, "<SPAN>"),
        ("a stream that is a list of texts", {"stream": ["a"]}, "stream"),
        ("a stream that is a number", {"stream": 3}, "int"),
        ("two seeds for one request", {"seed": [1, 2]}, "2 seeds"),
        ("a system text that is a number", {"system": 7}, "7"),
        ("a system text with half a surrogate", {"system": f"a{HALF}"}, "system"),
        ("do_sample that is a text", {"do_sample": "no"}, "do_sample"),
    )
    for name, changes, value in others:
        yield Entry(f"generate: {name}", partial(ask, changes), (value,))


def _png(size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


def _saved(world: World, name: str, data: bytes) -> Path:
    path = world.root / name
    path.write_bytes(data)
    return path


def of_pictures() -> Iterator[Entry]:
    picture = Image.new("RGB", (32, 32))

    def tiff(world: World) -> Path:
        path = world.root / "float.tiff"
        Image.fromarray(np.random.default_rng(0).random((32, 32), dtype=np.float32)).save(path)
        return path

    def other(kind: str, world: World) -> Path:
        path = world.root / f"other.{kind}"
        picture.save(path)
        return path

    bad: tuple[tuple[str, Callable[[World], Any], str], ...] = (
        ("a number", lambda w: 7, "int"),
        ("an object", lambda w: object(), "object"),
        ("a dict", lambda w: {"path": w["kitchen"]}, "dict"),
        ("a path that is missing", lambda w: "nothing.png", "nothing.png"),
        ("a folder", lambda w: w["empty_folder"], "empty"),
        ("an empty text", lambda w: "", "''"),
        ("a text with a zero byte", lambda w: "a\0b.png", "a"),
        ("a name longer than a path", lambda w: "x" * 5000, "xxx"),
        ("raw base64", lambda w: "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ" * 200, "base64"),
        ("a web address", lambda w: "https://example.org/a.png", "https://example.org/a.png"),
        ("an ftp address", lambda w: "ftp://example.org/a.png", "ftp://example.org/a.png"),
        ("a data address that is cut", lambda w: "data:image/png;base64,iVBO", "data:"),
        ("a data address of text", lambda w: "data:text/plain,hello", "data:"),
        ("empty bytes", lambda w: b"", "0 bytes"),
        ("bytes of a text", lambda w: b"a dog is in the picture", "23 bytes"),
        ("half a PNG", lambda w: _png()[:60], "60 bytes"),
        ("one pixel", lambda w: Image.new("RGB", (1, 1)), "1x1"),
        ("a line of pixels", lambda w: Image.new("RGB", (4000, 8)), "4000x8"),
        ("no pixels", lambda w: Image.new("RGB", (0, 0)), "0x0"),
        ("too many pixels", lambda w: Image.new("1", (10_000, 10_000)), "10000x10000"),
        ("a float TIFF", tiff, "float.tiff"),
        ("a PPM file", partial(other, "ppm"), "other.ppm"),
        ("a TGA file", partial(other, "tga"), "other.tga"),
        ("an ICO file", partial(other, "ico"), "other.ico"),
        ("a PCX file", partial(other, "pcx"), "other.pcx"),
        ("a DDS file", partial(other, "dds"), "other.dds"),
        ("an EPS file", partial(other, "eps"), "other.eps"),
        ("a PDF file", partial(other, "pdf"), "other.pdf"),
        ("a JPEG 2000 file", partial(other, "jp2"), "other.jp2"),
        (
            "an SVG file",
            lambda w: _saved(w, "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            "drawing.svg",
        ),
        ("a HEIC file", lambda w: _saved(w, "photo.heic", b"\0\0\0\x18ftypheic" + bytes(100)), "photo.heic"),
        ("an MP4 file", lambda w: _saved(w, "film.mp4", b"\0\0\0\x18ftypmp42" + bytes(100)), "film.mp4"),
        ("a PNG that says it is huge", lambda w: _saved(w, "bomb.png", _huge()), "bomb.png"),
        ("an array of floats above 1", lambda w: np.full((32, 32, 3), 300.0), "array"),
        ("an array with NaN", lambda w: np.full((32, 32, 3), np.nan, dtype=np.float32), "NaN"),
        ("an array of one number", lambda w: np.zeros(7, dtype=np.uint8), "(7,)"),
        ("an array of five channels", lambda w: np.zeros((32, 32, 5), dtype=np.uint8), "(32, 32, 5)"),
        ("an array of objects", lambda w: np.array([[object()] * 9] * 9), "object"),
        ("a tensor of complex numbers", lambda w: torch.zeros(3, 32, 32, dtype=torch.complex64), "complex64"),
        ("an empty stream", lambda w: io.BytesIO(b""), "bytes"),
        ("a stream of text", lambda w: io.StringIO("a dog"), "StringIO"),
        ("a closed file", lambda w: _closed(w), "closed"),
        ("a list of none", lambda w: [], "[]"),
    )
    for name, make, value in bad:
        yield Entry(f"picture: {name}", partial(with_picture, make), (value, "image"))
    fine: tuple[tuple[str, Callable[[World], Any]], ...] = (
        ("a path", lambda w: Path(w["kitchen"])),
        ("bytes", lambda w: Path(w["kitchen"]).read_bytes()),
        ("a file address", lambda w: "file://" + w["kitchen"]),
        ("a stream of bytes", lambda w: io.BytesIO(_png())),
        ("an open file", lambda w: Path(w["kitchen"]).open("rb")),  # noqa: SIM115
        ("an array of bytes", lambda w: np.zeros((32, 32, 3), dtype=np.uint8)),
        ("a grey array", lambda w: np.zeros((32, 32), dtype=np.uint8)),
        ("a tensor of bytes", lambda w: torch.zeros(3, 32, 32, dtype=torch.uint8)),
        ("a palette picture", lambda w: Image.new("P", (32, 32))),
        ("a transparent picture", lambda w: Image.new("RGBA", (32, 32), (255, 0, 0, 0))),
        ("sixteen bits of grey", lambda w: Image.fromarray(np.zeros((32, 32), dtype=np.uint16))),
        ("none", lambda w: None),
    )
    for name, make in fine:
        yield Entry(f"picture: good: {name}", partial(with_picture, make), (), "good")


def _closed(world: World) -> Any:
    file = Path(world["kitchen"]).open("rb")  # noqa: SIM115
    file.close()
    return file


def _huge() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def of_prompts() -> Iterator[Entry]:
    def chat(content: Any, role: Any = "user") -> list[dict[str, Any]]:
        return [{"role": role, "content": content}]

    part = {"type": "text", "text": "What is there?"}
    bad: tuple[tuple[str, Any, str], ...] = (
        ("empty", "", "''"),
        ("blank", " \n", "empty"),
        ("a number", 5, "int"),
        ("none", None, "NoneType"),
        ("bytes", b"What?", "bytes"),
        ("a dict", {"role": "user", "content": "a"}, "dict"),
        ("half a surrogate", f"What is {HALF}?", "surrogate"),
        (
            "half a surrogate in a chat",
            chat([{"type": "image"}, {"type": "text", "text": HALF}]),
            "surrogate",
        ),
        ("too many placeholders", "<image><image> What?", "placeholder"),
        ("longer than the context", "dog " * 3000, "1024"),
        ("a chat of an unknown role", chat([{"type": "image"}, part], "usr"), "usr"),
        (
            "a chat that ends with the assistant",
            [*chat([{"type": "image"}, part]), *chat("A dog.", "assistant")],
            "user",
        ),
        ("a message without content", [{"role": "user"}], "content"),
        ("a message without role", [{"content": "a"}], "role"),
        ("content that is a number", chat(5), "5"),
        ("a part of an unknown type", chat([{"type": "sound"}, part]), "sound"),
        ("a part without type", chat([{"text": "a"}]), "type"),
        ("a part whose text is a number", chat([{"type": "image"}, {"type": "text", "text": 5}]), "5"),
        ("a video", chat([{"type": "video", "video": "film.mp4"}, part]), "video"),
        ("a list of numbers", [1, 2], "int"),
        ("a list of none", [], "[]"),
    )
    for name, prompt, value in bad:
        yield Entry(f"prompt: {name}", partial(ask, {"prompt": prompt}), (value, "prompt"))
    fine: tuple[tuple[str, Any], ...] = (
        ("other letters", "狗在哪里？🦒"),
        ("tags in it", "Is <SPAN>a dog</UN> there?"),
        ("control tokens in it", "What is </s> <|im_end|>?"),
        ("a placeholder first", "<image>\nWhat is there?"),
        ("a chat", chat([{"type": "image"}, part])),
    )
    for name, prompt in fine:
        yield Entry(f"prompt: good: {name}", partial(ask, {"prompt": prompt}), (), "good")


def of_requests() -> Iterator[Entry]:
    bad: tuple[tuple[str, Any, dict[str, Any], str], ...] = (
        ("requests that are a number", 5, {}, "5"),
        ("requests that are texts", ["a", "b"], {}, "str"),
        ("a request with an unknown key", [{"image": "a.png"}], {}, "'image'"),
        ("a request whose picture is missing", [{"images": "nothing.png"}], {}, "nothing.png"),
        ("a triple", [("a.png", "What?", 3)], {}, "tuple"),
        ("a prompt that is a number", [{"prompt": 5}], {}, "5"),
        ("a seed that is a text", [{"seed": "a", "prompt": "What?"}], {}, "'a'"),
        ("no sequences", [{"prompt": "What?"}], {"max_sequences": 0}, "0"),
        ("sequences that are a text", [{"prompt": "What?"}], {"max_sequences": "two"}, "'two'"),
        ("a misspelt setting", [{"prompt": "What?"}], {"treshold": 1}, "treshold"),
        ("a threshold of 3", [{"prompt": "What?"}], {"threshold": 3}, "3"),
        ("an unknown mode", [{"prompt": "What?"}], {"mode": "fast"}, "fast"),
        ("an unknown on_error", [{"prompt": "What?"}], {"on_error": "ignore"}, "ignore"),
    )
    for name, requests, changes, value in bad:
        yield Entry(f"generate_many: {name}", partial(ask_many, requests, changes), (value,))
    yield Entry("generate_many: good: none", partial(ask_many, [], {}), (), "good")
    streamed: tuple[tuple[dict[str, Any], str], ...] = (
        ({"threshold": 3}, "3"),
        ({"images": "nothing.png"}, "nothing.png"),
        ({"prompt": ""}, "empty"),
        ({"mode": "fast"}, "fast"),
        ({"commit": "word"}, "word"),
        ({"treshold": 3}, "treshold"),
        ({"max_new_tokens": 0}, "0"),
        ({"stop_strings": [""]}, "stop"),
    )
    for changes, value in streamed:
        yield Entry(f"stream({changes})", partial(ask_stream, changes), (value,))
    drops: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
        ({"threshold": 3}, {}, "3"),
        ({"treshold": 1}, {}, "treshold"),
        ({"open_ended": True}, {}, "open_ended"),
        ({}, {"num_beams": 2}, "beam"),
        ({}, {"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({}, {"cache_implementation": "static"}, "cache_implementation"),
        ({}, {"max_new_tokens": 0}, "0"),
    )
    for settings, options, value in drops:
        yield Entry(f"retrospective({settings}), {options}", partial(drop_in, settings, options), (value,))
    yield Entry(
        "retrospective: a processor that is a text",
        lambda w: reverse.retrospective("tiny-llava"),
        ("tiny-llava",),
    )
    yield Entry(
        "generate: a model that is a text",
        lambda w: reverse.generate("tiny-llava", w["llava"][1], None, "What?"),
        ("str", "tiny-llava"),
    )
    yield Entry(
        "generate: a processor that is none",
        lambda w: reverse.generate(w["llava"][0], None, None, "What?"),
        ("None",),
    )
    yield Entry(
        "generate: processor of the other family",
        lambda w: reverse.generate(w["llava"][0], w["qwen"][1], w["kitchen"], max_new_tokens=2),
        ("rocessor",),
    )
    yield Entry(
        "generate: model and processor exchanged",
        lambda w: reverse.generate(w["llava"][1], w["llava"][0], None, "What?"),
        ("rocessor",),
    )


def of_checkpoints() -> Iterator[Entry]:
    loads: tuple[tuple[str, Callable[[World], Any], str], ...] = (
        ("an empty name", lambda w: reverse.load(""), "''"),
        ("a folder that is missing", lambda w: reverse.load("./nowhere"), "./nowhere"),
        ("a file", lambda w: reverse.load(w["notes"]), "notes.txt"),
        ("an empty folder", lambda w: reverse.load(w["empty_folder"]), "empty"),
        ("no tokens", lambda w: reverse.load(w["untagged"]), "<SPAN>"),
        ("a number", lambda w: reverse.load(5), "int"),
        ("none", lambda w: reverse.load(None), "None"),
        (
            "trust_remote_code",
            lambda w: reverse.load("tiny-llava", trust_remote_code=True),
            "trust_remote_code",
        ),
        ("a device of letters", lambda w: reverse.load("tiny-llava", device="tpu9"), "tpu9"),
        ("a device that is absent", lambda w: reverse.load("tiny-llava", device="cuda:77"), "cuda:77"),
        ("a dtype of letters", lambda w: reverse.load("tiny-llava", dtype="float99"), "float99"),
        ("an attention of letters", lambda w: reverse.load("tiny-llava", attn_implementation="fast"), "fast"),
        ("an image backend of letters", lambda w: reverse.load("tiny-llava", image_backend="cv2"), "cv2"),
        ("a misspelt option", lambda w: reverse.load("tiny-llava", devise="cpu"), "devise"),
        ("quantisation", lambda w: reverse.load("tiny-llava", load_in_4bit=True), "load_in_4bit"),
    )
    for name, call, value in loads:
        yield Entry(f"load: {name}", call, (value,))
    written: tuple[tuple[str, Callable[[World], Any], str], ...] = (
        ("merge: a folder that is missing", lambda w: merge_adapter(w["missing"], w["new"]), "nothing.json"),
        ("merge: an empty folder", lambda w: merge_adapter(w["empty_folder"], w["new"]), "empty"),
        ("merge: a plain checkpoint", lambda w: merge_adapter(w["untagged"], w["new"]), "untagged"),
        ("convert: an empty folder", lambda w: convert(w["empty_folder"], w["new"]), "empty"),
        ("convert: a plain checkpoint", lambda w: convert(w["untagged"], w["new"]), "untagged"),
        ("add: an empty folder", lambda w: add_tokens_to_checkpoint(w["empty_folder"], w["new"]), "empty"),
        (
            "add: into a full folder",
            lambda w: add_tokens_to_checkpoint(w["untagged"], w["busy_folder"]),
            "busy",
        ),
        (
            "add: a start that is empty",
            lambda w: add_tokens_to_checkpoint(w["untagged"], w["new"], init=""),
            "init",
        ),
        (
            "add: a seed that is a text",
            lambda w: add_tokens_to_checkpoint(w["untagged"], w["new"], seed="a"),
            "seed",
        ),
    )
    for name, call, value in written:
        yield Entry(name, call, (value,))
