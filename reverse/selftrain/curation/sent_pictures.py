"""Send pictures to a teacher: as data URLs, as the caller's addresses, or as descriptions.

    SentPictures(root="pictures").parts(("train/a.png",))
    [{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}]

A picture is opened and checked before it is sent (`reverse.data.pictures.opening`). JPEG, PNG and WebP
files of
up to `MAX_SENT` bytes are sent as they are; anything else is sent as JPEG.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from reverse.data.pictures.opening import open_image, resolve_image
from reverse.errors import DataError, RequestError
from reverse.files.text_reading import read_json_lines

__all__ = ["SentPictures", "read_descriptions"]

MAX_SENT = 4 << 20  # bytes of a file that is sent as it is
MAX_DESCRIPTION = 20_000  # characters
_MEDIA = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class SentPictures:
    """How the pictures of a record reach the teacher.

    Args:
        root: folder that the paths of pictures are relative to.
        url: address that paths are appended to; the teacher's server fetches them there. None: data URLs.
        descriptions: texts by path for teachers that read no pictures; None: pictures are sent.

    Raises RequestError for an address that is none, and if both are given.
    """

    root: Path | None = None
    url: str | None = None
    descriptions: Mapping[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.url is not None and self.descriptions is not None:
            raise RequestError("--image-url sends pictures and --image-descriptions texts: give one of them")
        if self.url is not None and urlsplit(self.url).scheme not in ("http", "https"):
            raise RequestError(f"--image-url must begin with http:// or https://, got {self.url[:80]!r}")

    @property
    def is_given(self) -> bool:
        """Whether anything says how pictures are shown."""
        return not (self.root is None and self.url is None and self.descriptions is None)

    def parts(self, images: Sequence[str]) -> list[dict[str, Any]]:
        """Return the parts of a message that show these pictures.

        Raises DataError for a path that leaves the folder, a picture that cannot be opened or that has no
        description, and RequestError if nothing says where pictures are.
        """
        if self.descriptions is not None:
            return [{"type": "text", "text": self._describe(image)} for image in images]
        return [{"type": "image_url", "image_url": {"url": self._address(image)}} for image in images]

    def _describe(self, image: str) -> str:
        assert self.descriptions is not None
        if image not in self.descriptions:
            raise DataError(
                f"there is no description of {image!r:.80}: add a line for it to --image-descriptions"
            )
        return f"What the picture shows: {self.descriptions[image]}"

    def _address(self, image: str) -> str:
        if self.url is not None:
            resolve_image(Path("/"), image)  # refuses absolute paths and ".." that leaves
            return f"{self.url.rstrip('/')}/{quote(image)}"
        if self.root is None:
            raise RequestError(
                f"the record has the picture {image!r:.80}: --images names the folder it is in"
            )
        path = resolve_image(self.root, image)
        picture = open_image(path)
        media = _find_media(path)
        if media is not None and path.stat().st_size <= MAX_SENT:
            data = path.read_bytes()
        else:
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=90)
            media, data = "image/jpeg", stream.getvalue()
        return f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"


def _find_media(path: Path) -> str | None:
    """Return the media type of a file by its first bytes, if servers accept it."""
    with path.open("rb") as stream:
        begin = stream.read(12)
    return next((media for mark, media in _MEDIA.items() if begin.startswith(mark)), None)


def read_descriptions(path: Path) -> dict[str, str]:
    """Read a file of `reverse curate image-description`: JSON lines with `image` and `description`.

    Raises DataError naming file and line for anything else.
    """
    found: dict[str, str] = {}
    for number, value in read_json_lines(path):
        image = value.get("image") if isinstance(value, dict) else None
        text = value.get("description") if isinstance(value, dict) else None
        if not isinstance(image, str) or not isinstance(text, str) or not text.strip():
            raise DataError(
                f'{path}, line {number}: a description is {{"image": …, "description": …}}, got {value!r:.80}'
            )
        if len(text) > MAX_DESCRIPTION:
            raise DataError(
                f"{path}, line {number}: the description has {len(text):,} characters, at most "
                f"{MAX_DESCRIPTION:,} are sent: shorten it"
            )
        found.setdefault(image, text)
    return found
