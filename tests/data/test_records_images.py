"""Records and pictures from outside: what is wrong with them is said, and nothing leaves its directory."""

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reverse.data.pictures.opening import MAX_PIXELS, open_image, resolve_image
from reverse.data.records.published_set import read_records
from reverse.data.records.record_rules import check_shape
from reverse.data.records.schema import make_record
from reverse.files import json_window

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


def png(width, height):
    """The bytes of a PNG whose header claims a size and whose pixels are missing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_too_small_is_refused(size):
    """Without it: 1x1 pictures fail deep inside an image processor."""
    with pytest.raises(ValueError, match="too small"):
        open_image(Image.new("RGB", size))


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_too_large_is_refused_before_decoding(size):
    """Without it: a file of 100 bytes takes gigabytes, or PIL's own error or warning fires."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=str(MAX_PIXELS)):
            open_image(png(*size))


@pytest.mark.parametrize("size", [(8, 1_000_000), (1_000_000, 8), (801, 8)])
def test_too_long_is_refused_before_decoding(size, tmp_path):
    """Without it: a thin strip is scaled to a million times the memory, or Qwen's own error names no file."""
    path = tmp_path / "strip.png"
    path.write_bytes(png(*size))
    with pytest.raises(ValueError, match=rf"strip\.png is {size[0]}x{size[1]} pixels.*100 times.*crop it"):
        open_image(path)
    assert open_image(Image.new("RGB", (800, 8))).size == (800, 8)


def test_missing_directory_and_no_picture(tmp_path):
    """Without it: the error does not say which file is meant."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="not a file"):
        open_image(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        open_image(tmp_path / "text.png")
    with pytest.raises(TypeError, match="ndarray"):
        open_image(np.zeros((9, 9, 3)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_cut_off_files_are_refused(kind, tmp_path):
    """Without it: half a picture is grey below, and the model is asked about it."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="half"):
        open_image(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_raise_only_value_errors(data):
    """Without it: a decoder's struct.error or SyntaxError stops a long run without a file's name."""
    picture = bytearray(encoded(NOISE, data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        picture[data.draw(st.integers(0, len(picture) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(bytes(picture))
        except ValueError:
            return
    assert image.mode == "RGB" and image.width * image.height <= MAX_PIXELS


def test_orientation_frames_modes():
    """Without it: phone pictures lie on their side, and transparent or 16-bit ones turn black or white."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(moving).getpixel((4, 4)) == (255, 0, 0)
    opened = Image.open(io.BytesIO(moving))
    opened.seek(1)
    assert open_image(opened).getpixel((4, 4)) == (255, 0, 0)
    assert open_image(Image.new("RGBA", (9, 9), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    deep = encoded(Image.fromarray(np.full((9, 9), 32768, np.uint16)))
    assert open_image(deep).getpixel((0, 0)) == (128, 128, 128)
    for mode in ("1", "L", "P", "CMYK", "LA", "RGB"):
        assert open_image(Image.new(mode, (9, 9))).mode == "RGB"


@pytest.mark.parametrize(
    "path", ["../secret.png", "a/../../secret.png", "/etc/passwd", "", "a\0b", "link/secret.png"]
)
def test_paths_do_not_leave_the_root(path, tmp_path):
    """Without it: a data set reads any file of the machine."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="image path"):
        resolve_image(root, path)


def test_paths_inside_resolve(tmp_path):
    """Without it: ordinary nested paths are refused."""
    assert resolve_image(tmp_path, "coco/../coco/1.png") == tmp_path.resolve() / "coco" / "1.png"


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("layout", ["list", "indented", "lines"])
def test_records_are_read_from_lists_and_lines(layout, chunk, tmp_path, monkeypatch):
    """Without it: a record on the border of two reads is lost or torn."""
    monkeypatch.setattr(json_window, "CHUNK", chunk)
    records = [make_record(str(i), f"images/{i}.png", "What is this?", "Ä “dog” ]}, [{") for i in range(20)]
    path = tmp_path / "records"
    if layout == "lines":
        path.write_text(
            "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8"
        )
    else:
        path.write_text(json.dumps(records, indent=1 if layout == "indented" else None), encoding="utf-8")
    assert list(read_records(path)) == records


@pytest.mark.parametrize(
    "text", ['[{"id": "1"', "[", '{"id": }', '[{"id": "1"}]', "[1]", '{"conversations": 3}']
)
def test_bad_files_say_where(text, tmp_path):
    """Without it: the error is a KeyError hours into training."""
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"records\.json, (item 0|line 1)"):
        list(read_records(path))
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        list(read_records(tmp_path / "gone.json"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": 3}, "relative path"),
        ({"conversations": [{"from": "gpt", "value": "x"}] * 2}, "turns alternate"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": None}]}, '"value"'),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "x", "hint": 1}]},
            '"hint"',
        ),
    ],
)
def test_bad_records_say_what(change, words):
    """Without it: a misread field is trained on."""
    record = make_record("1", None, "Hello?", "Hello.")
    check_shape(record)
    assert "image" not in record and record["conversations"][0]["value"] == "Hello?"
    with pytest.raises(ValueError, match=words):
        check_shape(record | change)
