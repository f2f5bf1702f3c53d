"""A picture whose pixels are good and whose EXIF is damaged is shown by every viewer, and was refused."""

import io

import numpy as np
import pytest

from reverse.data.pictures.opening import open_image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"garbage", b"Exif\0\0MM\0*\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30]
)
def test_damaged_exif_does_not_stop_a_picture(kind, exif, picture):
    """One camera's or editor's broken block would drop all of its pictures from a training."""
    file = io.BytesIO()
    picture(size=(40, 30)).save(file, kind, exif=exif, **{"lossless": True} if kind == "WEBP" else {})
    opened = open_image(file.getvalue())
    assert opened.size == (40, 30)
    if kind != "JPEG":
        assert np.array_equal(np.asarray(opened), np.asarray(picture(size=(40, 30))))
