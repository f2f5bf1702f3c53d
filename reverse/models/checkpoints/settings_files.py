"""Read the settings files of a checkpoint, which are a stranger's: bounded in size and depth, and sane.

    config = read_settings(folder / "config.json")
    read = check_settings(find_settings(path, hub))         # all that transformers reads later

transformers reads the same files without limits: JSON that is nested deep enough ends in a RecursionError, a
pipe or a device never ends. Whatever is wrong is a ValueError that names file, value and remedy.
"""

import math
import os
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from reverse.data.pictures.opening import MAX_PIXELS
from reverse.errors import CheckpointError
from reverse.files.text_reading import parse_json, read_text

MAX_DEPTH = 64
MAX_BYTES = 64 << 20  # Qwen's tokenizer.json has 11 MB, the index of the largest public model 20 MB
SETTINGS = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "tokenizer.json", "vocab.json", "model.safetensors.index.json",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_SHOWN = 60  # characters of a value in a message


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises ValueError where it is damaged, too large, nested too deeply, or no object.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file: fetch the checkpoint again")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes, and settings have at most {MAX_BYTES:,}: fetch or "
            f"save the checkpoint again"
        )
    try:
        found = parse_json(read_text(path, max_bytes=MAX_BYTES), path.name, max_depth=MAX_DEPTH)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): fetch or save the checkpoint again") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} holds no JSON object but {found!r:.40}: fetch or save the checkpoint again"
        )
    return found


def find_settings(path: str, hub: dict[str, Any], *, vocabulary: bool = True) -> dict[str, Path]:
    """The settings files of a folder or of a hub id, by their names; those that are missing are left out.

    `vocabulary=False` leaves out the large ones, which only a tokenizer needs.
    """
    place = Path(path)
    names = [name for name in SETTINGS if vocabulary or name not in _VOCABULARIES]
    if place.is_dir():
        folder = place / hub.get("subfolder", "")
        # A broken link or a pipe is "there": `read_settings` refuses it.
        return {name: folder / name for name in names if os.path.lexists(folder / name)}
    found = {name: _fetch(path, name, hub) for name in names}
    return {name: file for name, file in found.items() if file is not None}


def check_settings(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Read all of `files` but the vocabularies' content, and refuse values that no checkpoint has.

    Returns:
        The objects by file name.

    Raises:
        ValueError: a file is damaged, or holds a value that would be ignored or end in a traceback later.
    """
    read = {name: read_settings(file) for name, file in files.items()}
    if "generation_config.json" in read:
        _check_generation(files["generation_config.json"], read["generation_config.json"])
    for name in ("processor_config.json", "preprocessor_config.json"):
        if name in read:
            found = read[name].get("image_processor", read[name])
            if not isinstance(found, dict):
                raise CheckpointError(refused(files[name], "image_processor", found, "must be an object"))
            _check_pictures(files[name], found)
    return read


def refused(file: Path | str, name: str, value: Any, rule: str) -> str:
    """The message for a value in a settings file."""
    return f"{file} has {name}={shorten(value)}, which {rule}: fetch or save the checkpoint again"


def shorten(value: Any) -> str:
    """A value as it is shown in messages, cut to a sane length."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = (
        repr(value) if not isinstance(value, (dict, list)) or len(value) < 1000 else f"{type(value).__name__}"
    )
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether `value` is a whole number (no bool) from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, above: float = -math.inf, most: float = math.inf) -> bool:
    """Whether `value` is a finite number (no bool) above `above` and at most `most`."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and above < float(value) <= most
    except OverflowError:
        return False


def _fetch(path: str, name: str, hub: dict[str, Any]) -> Path | None:
    found = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if found is None else Path(found)


def _check_generation(file: Path, settings: dict[str, Any]) -> None:
    """Ids of tokens are whole numbers: transformers would take others for no end of the answer."""
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = settings.get(name)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if value is not None and (not ids or not all(is_whole(one, -1, 1 << 24) for one in ids)):
            raise CheckpointError(refused(file, name, value, "must be the id of a token"))


def _check_pictures(file: Path, settings: dict[str, Any]) -> None:
    for name in ("image_mean", "image_std"):
        value = settings.get(name)
        if value is None:
            continue
        parts = value if isinstance(value, list) else [value]
        least = 0.0 if name == "image_std" else -math.inf
        if not parts or len(parts) > 4 or not all(is_number(one, least, 1e6) for one in parts):
            rule = "must be one number a channel" + (", above 0" if name == "image_std" else "")
            raise CheckpointError(refused(file, name, value, rule))
    if settings.get("rescale_factor") is not None and not is_number(settings["rescale_factor"], 0, 1e6):
        raise CheckpointError(
            refused(file, "rescale_factor", settings["rescale_factor"], "must be a number above 0")
        )
    if settings.get("resample") is not None and not is_whole(settings["resample"], 0, 5):
        raise CheckpointError(
            refused(file, "resample", settings["resample"], "must be a filter of Pillow, 0 to 5")
        )
    for name, value in settings.items():
        if name.startswith("do_") and not isinstance(value, (bool, type(None))):
            raise CheckpointError(refused(file, name, value, "must be true or false"))
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        if settings.get(name) is not None and not is_whole(settings[name], 1, 1024):
            raise CheckpointError(
                refused(file, name, settings[name], "must be a whole number from 1 to 1024")
            )
    for name in ("size", "crop_size", "min_pixels", "max_pixels"):
        for key, value in _sizes(name, settings.get(name)):
            # `longest_edge` is a limit of pixels in Qwen's settings, and no picture has more than MAX_PIXELS.
            most = 1 << 40 if key.endswith(("longest_edge", "max_pixels")) else MAX_PIXELS
            if value is not None and not is_whole(value, 1, most):
                raise CheckpointError(refused(file, key, value, f"must be a whole number from 1 to {most}"))


def _sizes(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return [
            (f"{name}.{key}", one) for key, one in value.items() if key not in ("min_aspect", "max_aspect")
        ]
    return [(name, value)]
