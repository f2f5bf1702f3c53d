"""An image processor that handles one picture at a time, so that a cache can hold its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from transformers import BatchFeature

__all__ = ["PerPictureProcessor", "ProcessPicture"]

Tensors = Mapping[str, torch.Tensor]
# (picture, the other things that its tensors depend on, a function that makes them) -> its tensors
ProcessPicture = Callable[[Any, str, Callable[[], Tensors]], Tensors]


class PerPictureProcessor:
    """Replaces `image_processor` in a processor, and lets `process` make the tensors of every picture.

    The tensors that `process` returns must have their true shapes: placeholders are counted by them.
    """

    def __init__(self, image_processor: Any, process: ProcessPicture):
        self._image_processor, self._process = image_processor, process

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        settings = f"{type(self._image_processor)} {vars(self._image_processor)} {kwargs}"
        found = [
            self._process(picture, settings, partial(self._make, picture, kwargs))
            for picture in _flatten(images)
        ]
        if len(found) == 1:
            return BatchFeature(dict(found[0]))
        return BatchFeature({name: torch.cat([tensors[name] for tensors in found]) for name in found[0]})

    def _make(self, picture: Any, kwargs: Mapping[str, Any]) -> Tensors:
        return dict(self._image_processor(picture, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)


def _flatten(images: Any) -> Iterator[Any]:
    for image in images:
        if isinstance(image, (list, tuple)):
            yield from _flatten(image)
        else:
            yield image
