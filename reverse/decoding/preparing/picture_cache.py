"""A cache of prepared and encoded pictures by their pixels, so that each is encoded once.

cache = PictureCache()
ref = cache.find(picture, settings, make)     # ref.encoded is set if the picture was encoded before
cache.keep(ref)                               # once the picture is encoded
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from reverse.decoding.asks import PictureRef
from reverse.decoding.backends.protocol import Picture

if TYPE_CHECKING:
    import torch

__all__ = ["PictureCache"]

_MOST_BYTES = 256 << 20  # of features: about 50 pictures of LLaVA-1.5-7B, 150 of Qwen2.5-VL-3B at 640x480
_SMALL = 64  # values of a tensor, such as a picture's grid, that are kept as they are

Tensors = Mapping[str, "torch.Tensor"]


class PictureCache:
    """The pictures of one engine. It is thread-safe.

    Pictures that a request holds are found again. Up to `most_bytes` of features are kept longer; the least
    recently used are dropped first.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES):
        self.most_bytes = most_bytes
        self._known: WeakValueDictionary[bytes, PictureRef] = WeakValueDictionary()
        self._kept: OrderedDict[PictureRef, int] = OrderedDict()  # bytes; the last used at the end
        self._bytes = 0
        self._guard = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of the features that are kept."""
        return self._bytes

    def find(self, picture: Any, settings: str, make: Callable[[], Tensors]) -> PictureRef:
        """Return a PIL picture prepared with these processor settings; `make` prepares an unknown one."""
        key = _compute_digest(picture, settings)
        with self._guard:
            ref = self._known.get(key)
            if ref is not None:
                if ref in self._kept:
                    self._kept.move_to_end(ref)
                return ref
        tensors = make()
        ref = PictureRef(Picture(tensors), outline={name: _make_outline(t) for name, t in tensors.items()})
        with self._guard:
            return self._known.setdefault(key, ref)

    def keep(self, ref: PictureRef) -> None:
        """Keep the features of an encoded picture if there is room."""
        if ref.encoded is None or ref.outline is None:
            return
        with self._guard:
            size = ref.encoded.features.nbytes
            if ref in self._kept or size > self.most_bytes:
                return
            self._kept[ref] = size
            self._bytes += size
            while self._bytes > self.most_bytes:
                _, freed = self._kept.popitem(last=False)
                self._bytes -= freed

    def drop(self) -> bool:
        """Drop features that no request holds. Returns False if none were kept."""
        with self._guard:
            had_any = bool(self._kept)
            self._kept.clear()
            self._bytes = 0
        return had_any

    def forget(self) -> None:
        """Forget every picture, because the weights that encode them may change."""
        with self._guard:
            self.drop()
            self._known = WeakValueDictionary()


def _compute_digest(picture: Any, settings: str) -> bytes:
    about = f"{settings} {picture.mode} {picture.size}".encode("utf-8", "surrogatepass")
    digest = blake2b(len(about).to_bytes(8, "big") + about, digest_size=32)
    digest.update(picture.tobytes())
    return digest.digest()


def _make_outline(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape whose values take no memory."""
    return tensor if tensor.numel() <= _SMALL else tensor.new_zeros(()).expand(tensor.shape)
