"""Load a checkpoint of either family, with the three tokens, from a folder or a hub.

    >>> import reverse
    >>> model, processor = reverse.load("llava-with-tokens", device="cuda", dtype="bfloat16")

What is refused, and why: pickled weights and code beside the weights run whatever they were written to run;
a vocabulary without the three tokens cannot say which phrase is suspect.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import cached_file

from reverse.models.devices import check_device
from reverse.models.families import Family, family_named, stored_threshold
from reverse.models.processors import load_processor
from reverse.tokens.vocabulary import ensure_ordinary, token_ids

BUNDLED = ("tiny-llava", "tiny-qwen")
ASSETS = Path(__file__).resolve().parent.parent / "assets"

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PICTURE_SETTINGS = ("processor_config.json", "preprocessor_config.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load(
    path_or_id: str | os.PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str = "sdpa",
    require_tokens: bool = True,
    image_backend: str = "pil",
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a model in eval mode, and its processor, padding on the left.

    Args:
        path_or_id: a folder, a hub id, or "tiny-llava", the model that comes with the package.
        dtype: of the weights; by default as they were saved.
        device: where the model goes; by default the CPU, unless `device_map` is among `kwargs`.
        attn_implementation: "sdpa", "eager" or "flash_attention_2" (needs flash-attn).
        require_tokens: refuse a vocabulary without `<SPAN>`, `</CN>`, `</UN>`. Tags that were saved as
            special tokens become ordinary either way.
        image_backend: "pil" or "torchvision"; their pixels differ slightly.
        kwargs: for `from_pretrained` of the model; `revision`, `cache_dir`, `token`, `local_files_only` and
            `force_download` go to the processor too.

    Returns:
        The model, `LlavaForConditionalGeneration` or `Qwen2_5_VLForConditionalGeneration`, and its processor.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks config.json, weights, tokenizer or the image
            processor's settings.
        ValueError: unknown architecture; code beside the weights; pickled weights; damaged files; no tokens;
            a device or an image backend that is not there.
        TypeError: `trust_remote_code` is given.
    """
    if "trust_remote_code" in kwargs:
        raise TypeError(
            "trust_remote_code is not accepted: checkpoints are loaded without running their code"
        )
    if device is not None:
        check_device(device)
    hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
    path, family = find_checkpoint(path_or_id, **hub)

    try:
        processor = load_processor(path, family, backend=image_backend, **hub)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"tokenizer or processor settings of {path!r} are damaged ({error}): fetch them again"
        ) from error
    processor.tokenizer.padding_side = "left"
    ensure_ordinary(processor)
    if require_tokens:
        token_ids(processor)

    model = load_weights(path, family, dtype=dtype, attn_implementation=attn_implementation, **kwargs)
    _check_rows(path, model, processor)
    if device is not None:
        model = model.to(device)
    return model.eval(), processor


def find_checkpoint(path_or_id: str | os.PathLike, **hub: Any) -> tuple[str, Family]:
    """Where a checkpoint is, and its family. Refuses what `load` refuses, before anything heavy is read.

    `hub` are options of the hub, such as `revision`. Raises as `load`.
    """
    path = _resolve(path_or_id)
    config = _read_config(path, hub)
    family = _check_config(path, config)
    _check_weights(path)
    _check_files(path, _TOKENIZERS, "tokenizer")
    _check_files(path, _PICTURE_SETTINGS, "image processor")
    return path, family


def load_weights(path: str, family: Family, *, dtype: torch.dtype | str | None = None, **kwargs: Any) -> Any:
    """The model of a checkpoint that `find_checkpoint` let pass, from safetensors.

    Raises ValueError where the file is cut off or otherwise damaged.
    """
    try:
        return getattr(transformers, family.model_class).from_pretrained(
            path,
            dtype=dtype if dtype is not None else "auto",
            use_safetensors=True,
            trust_remote_code=False,
            **kwargs,
        )
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {path!r} are damaged or cut off ({error}): fetch them again"
        ) from error


def _resolve(path_or_id: str | os.PathLike) -> str:
    """A folder as it is, a bundled name as its folder, and what can only be a hub id as it is."""
    name = os.fspath(path_or_id)
    if not name.strip():
        raise ValueError(
            f"the checkpoint's name is empty, got {name!r}: name a folder, a hub id (owner/name) or one of "
            f"{', '.join(BUNDLED)}"
        )
    if Path(name).is_dir():
        return name
    if name in BUNDLED:
        if not (ASSETS / name).is_dir():
            raise FileNotFoundError(
                f"this installation has no bundled {name!r} (looked in {str(ASSETS / name)!r}): install a "
                "released wheel, or name a checkpoint folder"
            )
        return str(ASSETS / name)
    if Path(name).is_file():
        raise FileNotFoundError(f"{name!r} is a file: name the folder that holds config.json")
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise FileNotFoundError(
            f"there is no folder {name!r}: name a checkpoint folder, a hub id (owner/name) or one of "
            f"{', '.join(BUNDLED)}"
        )
    return name


def _read_config(path: str, hub: dict[str, Any]) -> dict[str, Any]:
    """config.json as it is written; AutoConfig would offer to run the code it names."""
    reason = ""
    try:
        file = cached_file(path, "config.json", **hub)
    except OSError as error:
        file, reason = None, f" ({error})"
    if file is None and (Path(path) / "adapter_config.json").is_file():
        raise ValueError(
            f"{path!r} is a LoRA adapter: merge it first, `reverse merge ADAPTER OUT --base BASE`"
        )
    if file is None:
        raise FileNotFoundError(
            f"{path!r} has no config.json that can be read{reason}: name a folder that `save_pretrained` "
            "wrote, or check the hub id and the connection"
        )
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise ValueError(f"{file} is damaged ({error}): fetch or save the checkpoint again") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{file} holds no JSON object but {config!r:.40}: fetch or save the checkpoint again"
        )
    return config


def _check_config(path: str, config: dict[str, Any]) -> Family:
    """The family that `config` names; refuses code and architectures that are not known."""
    family = family_named(config.get("model_type"), f"{path!r} ({config.get('architectures')})")
    if "auto_map" in config:
        raise ValueError(
            f"{path!r} wants to run its own code (auto_map in config.json: {config['auto_map']}): no code "
            f"is run from a checkpoint, and {family.name} needs none; take auto_map out if you trust the rest"
        )
    stored_threshold(config.get("reverse"))
    return family


def _check_files(path: str, names: tuple[str, ...], what: str) -> None:
    """Refuse a folder that holds none of the files that `what` may be saved in."""
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{path!r} has no {what} ({' or '.join(names)}): the checkpoint is not complete, fetch or save "
            "it again with its processor"
        )


def _check_weights(path: str) -> None:
    """Refuse a folder whose weights are pickled or missing (on a hub, `use_safetensors` refuses them)."""
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{path!r} holds pickled weights only ({', '.join(pickles[:3])}), which can run code when read: "
            "load them where you trust them and save them with save_pretrained, which writes safetensors"
        )
    raise FileNotFoundError(
        f"{path!r} has no *.safetensors: the checkpoint is not complete, fetch or save it again"
    )


def _check_rows(path: str, model: Any, processor: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    ids = processor.tokenizer.get_vocab()
    highest = max(ids, key=ids.__getitem__)
    if ids[highest] >= rows:
        raise ValueError(
            f"{path!r}: the tokenizer gives {highest!r} the id {ids[highest]}, but the model has {rows} "
            "embedding rows: tokenizer and weights are not of one checkpoint; run "
            "`reverse tokens add BASE OUT` on the base"
        )
