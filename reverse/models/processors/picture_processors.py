"""Processors: pictures through PIL, and a Qwen2.5-VL processor that needs no torchvision.

transformers' `Qwen2_5_VLProcessor` insists on a video processor, which insists on torchvision. This library
looks at pictures only, so a subclass without the video part takes its place, with torchvision and without:
the same pixels on every machine. It saves under the same name, and what one saves the other loads.
"""

from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin

from reverse.errors import CheckpointError, MissingPackageError
from reverse.models.families import Family

_VIDEO_SETTINGS = "video_processor"  # the key of processor_config.json


class Qwen2_5_VLProcessor(transformers.Qwen2_5_VLProcessor):
    """transformers' processor of that name without videos. It keeps the name: the name is what it saves."""

    attributes = ("image_processor", "tokenizer")

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template=None, **kwargs: Any):
        # the parent's __init__ without its video processor: checked on transformers 5.19 and 5.23
        self.image_token = "<|image_pad|>"
        self.video_token = "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self._video_settings = kwargs.get(_VIDEO_SETTINGS)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """As the parent's, for pictures and text.

        Raises:
            ImportError: `videos` are given.
        """
        if videos is not None:
            raise MissingPackageError(
                "this processor takes pictures only, because videos need torchvision: "
                "`pip install torchvision` and load with image_backend='torchvision'"
            )
        return super().__call__(images=images, text=text, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What is saved, video settings included: the checkpoint's own, unread, or else some that fit.
        transformers' own class does not load without any.
        """
        settings = super().to_dict()
        pictures = self.image_processor
        settings[_VIDEO_SETTINGS] = self._video_settings or {
            "video_processor_type": "Qwen2VLVideoProcessor",
            "patch_size": pictures.patch_size,
            "temporal_patch_size": pictures.temporal_patch_size,
            "merge_size": pictures.merge_size,
        }
        return settings


def image_only_qwen_processor(
    tokenizer: Any, *, size: dict[str, int], patch_size: int, chat_template: str
) -> Qwen2_5_VLProcessor:
    """A Qwen2.5-VL processor from its parts, as `build_tiny_qwen` needs it.

    Args:
        tokenizer: knows `<|image_pad|>` and `<|video_pad|>`.
        size: `shortest_edge` and `longest_edge`, the least and the most *pixels* of a picture (not sides).
        patch_size: side of a patch; two by two make a token.
        chat_template: jinja.
    """
    image_processor = pil_image_processor("Qwen2VLImageProcessor", size=size, patch_size=patch_size)
    return Qwen2_5_VLProcessor(image_processor, tokenizer, chat_template=chat_template)


def pil_image_processor(name: str, **settings: Any) -> Any:
    """The image processor `name` of transformers in its PIL form ("CLIPImageProcessor", …)."""
    return getattr(transformers, f"{name}Pil")(**settings)


def check_backend(backend: str) -> None:
    """Refuse a name that is no backend for pictures. Raises ValueError."""
    if backend not in ("pil", "torchvision"):
        raise CheckpointError(f"image_backend must be 'pil' or 'torchvision', got {backend!r}")


def load_processor(path: str, family: Family, *, backend: str = "pil", **kwargs: Any) -> Any:
    """The processor of a checkpoint, with its pictures going through `backend`.

    Args:
        path: folder or hub id.
        family: whose processor class to use.
        backend: "pil" (pictures only, the same pixels on every machine) or "torchvision" (videos too, where
            the family knows them).
        kwargs: for `from_pretrained` (`revision`, `cache_dir`, `token`, …).

    Raises:
        ValueError: `backend` is neither of the two.
    """
    check_backend(backend)
    kwargs["trust_remote_code"] = False
    processor_class = getattr(transformers, family.processor_class)
    if not family.video:
        return processor_class.from_pretrained(path, backend=backend, **kwargs)
    if backend == "torchvision":
        return processor_class.from_pretrained(path, backend=backend, **kwargs)
    settings, _ = processor_class.get_processor_dict(path, **kwargs)
    image_processor = AutoImageProcessor.from_pretrained(path, backend=backend, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    chat_template = settings.get("chat_template") or tokenizer.chat_template
    return Qwen2_5_VLProcessor(
        image_processor,
        tokenizer,
        chat_template=chat_template,
        **{_VIDEO_SETTINGS: settings.get(_VIDEO_SETTINGS)},
    )
