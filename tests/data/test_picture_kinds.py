"""Which pictures are taken, decided by content; whatever else comes is our own error with the path."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from reverse.data.pictures import opening
from reverse.data.pictures.opening import FORMATS, open_image, read_image_size

RED = Image.new("RGB", (16, 16), (255, 0, 0))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_formats_are_told_by_content(kind, tmp_path):
    """A JPEG that is called .png, as half of all data sets hold, was to stay readable."""
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(RED, kind))
    red = open_image(path).getpixel((8, 8))
    assert red[0] > 250 and max(red[1:]) < 5
    assert read_image_size(path) == (16, 16)


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO", "SGI", "IM", "DDS", "JPEG2000", "PDF", "EPS"])
def test_other_formats_are_refused_whatever_the_name(kind, tmp_path):
    """Decoders of rare formats raised NotImplementedError and RuntimeError, which ended a training."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(RED, kind))
    for read in (open_image, read_image_size):
        with pytest.raises(ValueError, match=r"picture\.png is not a picture .*no JPEG, PNG.*save it again"):
            read(path)


@pytest.mark.parametrize(
    "error", [NotImplementedError, RuntimeError, RecursionError, MemoryError, AssertionError, struct.error]
)
@pytest.mark.parametrize("where", ["open", "load"])
def test_whatever_a_decoder_raises_names_the_path(error, where, tmp_path, monkeypatch):
    """An error of a kind that no caller expects, without a path, ends a long run."""
    path = tmp_path / "odd.png"
    path.write_bytes(encoded(RED, "PNG"))

    def fail(*arguments, **options):
        raise error("odd")

    if where == "open":
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"odd\.png"):
        open_image(path)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_values_without_a_range_are_refused(mode, tmp_path):
    """A float TIFF became black or white, a Lab one green: a picture that nobody took."""
    path = tmp_path / "measured.tiff"
    Image.new(mode, (16, 16)).save(path)
    with pytest.raises(ValueError, match=rf"measured\.tiff is in mode '{mode}'.*scale it to 8 bits"):
        open_image(path)
    with pytest.raises(ValueError, match=f"mode '{mode}'"):
        open_image(Image.new(mode, (16, 16)))


def grey_png(values, transparent=None):
    """A 16-bit grey PNG of a uint16 array."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    body += b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_are_scaled_in_every_coding():
    """White where white is zero came out black, and a transparent 16-bit picture all white."""
    values = np.full((16, 16), 0x4000, np.uint16)
    values[0] = 7
    tiff = Image.fromarray(values)
    big = Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes())
    for data in (encoded(tiff, "TIFF"), encoded(big, "TIFF"), grey_png(values)):
        assert open_image(data).getpixel((8, 8)) == (64, 64, 64)
    inverted = encoded(tiff, "TIFF", tiffinfo={262: 0})
    assert open_image(inverted).getpixel((8, 8)) == (191, 191, 191)
    clear = open_image(grey_png(values, transparent=7))
    assert clear.getpixel((8, 0)) == (255, 255, 255) and clear.getpixel((8, 8)) == (64, 64, 64)


def test_transparency_is_white():
    """Premultiplied transparency was an error or dropped, which leaves black."""
    clear, grey = Image.new("RGBA", (16, 16), (255, 0, 0, 0)), Image.new("LA", (16, 16), (0, 0))
    odd = (clear.convert("RGBa"), grey.convert("La"), Image.new("PA", (16, 16), (0, 0)))
    for picture in (clear, grey, *odd, encoded(clear, "WEBP", lossless=True), encoded(clear, "TIFF")):
        assert open_image(picture).getpixel((8, 8)) == (255, 255, 255)


def test_cmyk_keeps_its_colours():
    """Ink read as light gives the negative."""
    for kind in ("TIFF", "JPEG"):
        red = open_image(encoded(RED.convert("CMYK"), kind)).getpixel((8, 8))
        assert red[0] > 240 and max(red[1:]) < 15


ARRAY = np.zeros((12, 16, 3), np.uint8)
ARRAY[..., 0] = 255


@pytest.mark.parametrize(
    ("source", "pixel"),
    [
        (ARRAY, (255, 0, 0)),
        (ARRAY[:, ::-1], (255, 0, 0)),
        (ARRAY[..., 0], (255, 255, 255)),
        (ARRAY[..., :1], (255, 255, 255)),
        (np.dstack([ARRAY, np.zeros((12, 16), np.uint8)]), (255, 255, 255)),
        (torch.tensor(ARRAY).permute(2, 0, 1), (255, 0, 0)),
        (torch.tensor(ARRAY[..., 0]), (255, 255, 255)),
    ],
)
def test_arrays_of_bytes_are_pictures(source, pixel):
    """Channels in the wrong place make stripes."""
    picture = open_image(source)
    assert picture.size == (16, 12) and picture.getpixel((8, 8)) == pixel


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (ARRAY / 255, TypeError, r"numpy.ndarray of float64, .*give \(x \* 255\)"),
        (ARRAY.astype(np.uint16), TypeError, "of uint16"),
        (ARRAY > 0, TypeError, "of bool"),
        (np.array([None]), TypeError, "of object"),
        (torch.rand(3, 16, 16), TypeError, r"torch.Tensor of float32.*to\(torch.uint8\)"),
        (ARRAY.transpose(2, 0, 1), ValueError, r"shape \(3, 12, 16\).*channels last"),
        (torch.tensor(ARRAY), ValueError, r"shape \(12, 16, 3\).*channels first"),
        (ARRAY[None], ValueError, "give one picture"),
        (ARRAY[:0], ValueError, "of shape"),
        (io.StringIO("a"), TypeError, "mode 'rb'"),
        (io.BytesIO(b""), ValueError, "image of 0 bytes is not a picture"),
    ],
)
def test_arrays_of_other_values_are_refused(source, kind, message):
    """Floats from 0 to 1 would be a black picture."""
    with pytest.raises(kind, match=message):
        open_image(source)


def test_a_stream_that_cannot_be_rewound_is_refused():
    """It would be empty when a batch is prepared a second time."""

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    with pytest.raises(ValueError, match="cannot be rewound, give the bytes"):
        open_image(Pipe(encoded(RED, "PNG")))


def test_scans_and_tiles_are_bounded(monkeypatch):
    """A JPEG of thousands of scans decodes for hours; a TIFF of one huge tile takes the memory."""
    data = encoded(RED, "JPEG", progressive=True)
    open_image(data)
    monkeypatch.setattr(opening, "MAX_WORK", 16 * 16 * 3)
    with pytest.raises(ValueError, match=r"has .* scans of 256 pixels"):
        open_image(data)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 1 << 30, 323: 1 << 14, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiled = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(ValueError, match=r"has tiles of \(1073741824, 16384\)"):
        open_image(tiled)


def test_a_picture_that_was_closed_before_it_was_read_says_so(tmp_path):
    """ "damaged or cut off (AssertionError): download it again" sent people to a file that is good."""
    RED.save(tmp_path / "red.png")
    with Image.open(tmp_path / "red.png") as closed:
        pass
    with pytest.raises(ValueError, match=r"PIL image cannot be decoded .*was closed before.*open it again"):
        open_image(closed)
