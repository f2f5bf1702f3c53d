"""Load processors: pictures through PIL, and for Qwen2.5-VL one that needs no torchvision.

transformers' `Qwen2_5_VLProcessor` insists on a video processor, which insists on torchvision. This library
uses pictures only, so a subclass without the video part replaces it, with torchvision and without: the same
pixels on every machine. It saves under the same name, and either class loads what the other saved.
"""

from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin

from reverse.errors import MissingPackageError, RequestError
from reverse.models.families import Family

_VIDEO_SETTINGS = "video_processor"  # the key of processor_config.json


class Qwen2_5_VLProcessor(transformers.Qwen2_5_VLProcessor):
    """transformers' processor of that name without videos. It keeps the name: the name is what it saves."""

    attributes = ("image_processor", "tokenizer")

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        # the parent's __init__ without its video processor: checked on transformers 5.19 and 5.23
        self.image_token = "<|image_pad|>"
        self.video_token = "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self._video_settings = kwargs.get(_VIDEO_SETTINGS)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """Prepare pictures and text as the parent class does.

        Raises MissingPackageError if `videos` are given.
        """
        if videos is not None:
            raise MissingPackageError(
                "this processor takes pictures only, because videos need torchvision: "
                "`pip install torchvision` and load with image_backend='torchvision'"
            )
        return super().__call__(images=images, text=text, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings to save, with the checkpoint's own video settings or suitable defaults.

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


_IMAGE_ONLY = {"Qwen2_5_VLProcessor": Qwen2_5_VLProcessor}  # for families whose record says `video=True`


def pil_image_processor(name: str, **settings: Any) -> Any:
    """Return the class `name` of transformers in its PIL form ("CLIPImageProcessor", …)."""
    return getattr(transformers, f"{name}Pil")(**settings)


def check_backend(backend: str) -> None:
    """Raise RequestError for a name that is not a backend for pictures."""
    if backend not in ("pil", "torchvision"):
        raise RequestError(f"image_backend must be 'pil' or 'torchvision', got {backend!r}")


def load_processor(path: str, family: Family, *, backend: str = "pil", **kwargs: Any) -> Any:
    """Load the processor of a checkpoint, which prepares pictures with `backend`.

    Args:
        path: folder or hub id.
        family: of the checkpoint.
        backend: "pil" (pictures only, the same pixels on every machine) or "torchvision" (videos too, if the
            family takes them).
        kwargs: for `from_pretrained` (`revision`, `cache_dir`, `token`, …).

    Raises RequestError if `backend` is neither of the two.
    """
    check_backend(backend)
    kwargs["trust_remote_code"] = False
    processor_class = getattr(transformers, family.processor_class)
    if not family.video or backend == "torchvision":
        return processor_class.from_pretrained(path, backend=backend, **kwargs)
    settings, _ = processor_class.get_processor_dict(path, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    return _IMAGE_ONLY[family.processor_class](
        AutoImageProcessor.from_pretrained(path, backend=backend, **kwargs),
        tokenizer,
        chat_template=settings.get("chat_template") or tokenizer.chat_template,
        **{_VIDEO_SETTINGS: settings.get(_VIDEO_SETTINGS)},
    )
