"""Read the pictures of chat messages: the picture that a content part names, and its wanted size."""

import base64
import binascii
import re
from collections.abc import Mapping
from numbers import Integral
from typing import Any
from urllib.parse import unquote

from reverse.data.pictures.opening import MAX_PIXELS, open_image
from reverse.errors import RequestError

_SOURCES = ("image", "image_url", "url", "path", "base64")  # keys of a part that name its picture
_SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")  # of qwen-vl-utils' messages
_OTHERS = ("type", "text", "detail", *_SIZE_KEYS)  # keys that do not name one
MAX_DATA_URL = 1 << 26  # characters; the picture in it takes three quarters of them in bytes
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)


def source_of(part: Mapping[str, Any]) -> Any:
    """Return the picture that a part names, not opened yet; None if it names none.

    Raises RequestError if it names two, or has only keys that are not understood.
    """
    named = [key for key in _SOURCES if part.get(key) is not None]
    if len(named) > 1:
        raise RequestError(f"a part of a chat names its picture by {' and '.join(named)}: give one of them")
    if not named:
        others = [str(key) for key in part if key not in _SOURCES and key not in _OTHERS]
        if others:
            raise RequestError(
                f"a picture part has {', '.join(map(repr, others)):.80} and none of {', '.join(_SOURCES)}: "
                "give {'type': 'image', 'image': …}"
            )
        return None
    source = part[named[0]]
    if isinstance(source, Mapping):  # {"image_url": {"url": …}}
        if "url" not in source:
            raise RequestError(
                f"a picture is given as {source!r:.80}: give a path, PIL image or bytes, or {{'url': …}}"
            )
        source = source["url"]
    return _decode_base64(source) if named[0] == "base64" else source


def open_picture(source: Any) -> Any:
    """Open a picture from anything that `open_image` takes, a `file://` address or a base64 data URL."""
    if isinstance(source, Mapping):
        return open_picture(source_of({"image": source}))
    if not isinstance(source, str):
        return open_image(source)
    head = source[:8].lower()
    if head.startswith("data:"):
        return _open_data_url(source)
    if head.startswith("file://"):
        name = source[len("file://") :]
        try:
            return open_image(name)
        except FileNotFoundError:  # percent-encoded: file:///my%20pictures/dog.png
            return open_image(unquote(name))
    if _SCHEME.match(source):
        raise RequestError(
            f"picture {source[:80]!r} is on the network: nothing is fetched from there, download it first"
        )
    return open_image(source)


def _open_data_url(source: str) -> Any:
    if len(source) > MAX_DATA_URL:
        raise RequestError(
            f"data URL of {len(source)} characters, of at most {MAX_DATA_URL}: give the picture's path or "
            "bytes, or scale it down"
        )
    head, _, body = source.partition(",")
    if not head.lower().endswith(";base64"):
        raise RequestError(f"data URI starts with {head[:40]!r}: only 'data:image/…;base64,…' is understood")
    return open_image(_decode_base64(body))


def _decode_base64(text: Any) -> bytes:
    if not isinstance(text, (str, bytes)) or len(text) > MAX_DATA_URL:
        got = f"{type(text).__name__} of {len(text) if isinstance(text, (str, bytes)) else 'no'} characters"
        raise RequestError(
            f"base64 must be a text of at most {MAX_DATA_URL} characters, got {got}: give the picture's path"
        )
    try:
        return base64.b64decode("".join(text.split()) if isinstance(text, str) else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"the base64 of a data URI cannot be read ({error}): encode the picture again"
        ) from error


def resize(picture: Any, part: Mapping, processor: Any) -> Any:
    """Bring a picture to the size that its part asks for, as qwen-vl-utils does (`max_pixels` and so on)."""
    asked = {key: part[key] for key in _SIZE_KEYS if key in part}
    if not asked:
        return picture
    patch_size = getattr(processor.image_processor, "patch_size", None)
    if patch_size is None:
        raise RequestError(
            f"a message sets {', '.join(asked)}, but this model sees every picture at one size: leave it out"
        )
    for key, value in asked.items():
        asked[key] = _check_size(key, value)
    if ("resized_height" in asked) != ("resized_width" in asked):
        raise RequestError(f"a message sets {asked}: resized_height and resized_width go together")
    if asked.get("min_pixels", 0) > asked.get("max_pixels", MAX_PIXELS):
        raise RequestError(f"a message sets {asked}: min_pixels may not be above max_pixels")
    try:
        from qwen_vl_utils import fetch_image  # imports torchvision
    except ImportError as error:
        raise RequestError(
            f"a message sets {', '.join(asked)}, which needs qwen-vl-utils ({error}): `pip install "
            "qwen-vl-utils torchvision`, or leave it out and set the size in the processor"
        ) from error
    try:
        return fetch_image({"image": picture, **asked}, image_patch_size=patch_size)
    except (AssertionError, ValueError) as error:
        raise RequestError(
            f"a message sets {asked} for a picture of {picture.width}x{picture.height} pixels, which cannot "
            f"be met ({error}): set max_pixels=1003520, or leave it out"
        ) from error


def _check_size(key: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= MAX_PIXELS:
        raise RequestError(
            f"a message sets {key}={value!r:.40}, which must be a whole number of pixels from 1 to "
            f"{MAX_PIXELS}"
        )
    return int(value)
