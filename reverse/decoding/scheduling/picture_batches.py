"""Encode the pictures of prompts, as many together as memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reverse.decoding.asks import PictureRef
from reverse.decoding.backends.protocol import Backend, OutOfMemory
from reverse.decoding.preparing.picture_cache import PictureCache

__all__ = ["encode_pictures"]

# Values of prepared pictures encoded together: 99 pictures of LLaVA-1.5, 28,532 patches of Qwen2.5-VL (18
# pictures of 640x480). The vision towers of the published models take up to 3 GB for so many.
_ENCODED_TOGETHER = 1 << 25


def encode_pictures(refs: Iterable[PictureRef], backend: Backend, cache: PictureCache) -> None:
    """Encode the pictures that have no features yet, and keep them in the cache.

    Raises OutOfMemory if a single picture does not fit, or if the backend has lost its sequences.
    """
    missing = [ref for ref in dict.fromkeys(refs) if ref.encoded is None and ref.picture is not None]
    most = len(missing)
    while missing:
        some = _take_first(missing, most)
        try:
            found = backend.encode([ref.picture for ref in some if ref.picture is not None])
        except OutOfMemory as error:
            if len(some) == 1 or error.lost_everything:
                raise
            most = len(some) // 2
            continue
        for ref, encoded in zip(some, found, strict=True):
            ref.encoded, ref.picture = encoded, None
            cache.keep(ref)
        missing = missing[len(some) :]


def _take_first(refs: Sequence[PictureRef], most: int) -> list[PictureRef]:
    """Return the pictures that are encoded together next: at least one."""
    found: list[PictureRef] = []
    values = 0
    for ref in refs[:most]:
        assert ref.picture is not None
        values += sum(tensor.numel() for tensor in ref.picture.tensors.values())
        if found and values > _ENCODED_TOGETHER:
            break
        found.append(ref)
    return found
