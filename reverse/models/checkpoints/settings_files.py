"""Read the settings files of a checkpoint and refuse values that no checkpoint has.

    config = read_settings(folder / "config.json")
    read = check_settings(find_settings(path, hub))         # all files that transformers reads later

The files are not trusted, and transformers reads them without limits: JSON that is nested deep enough
ends in a RecursionError, a pipe or a device never ends. Every error names the file, the value and the remedy.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

from transformers.utils import cached_file

from reverse.data.pictures.opening import MAX_PIXELS
from reverse.errors import CheckpointError, MissingFileError
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


@dataclass(frozen=True)
class Rule:
    """A rule for a value of a settings file; `text` completes the sentence "NAME must …"."""

    holds: Callable[[Any], bool]
    text: str


def whole_number(least: int, most: int, text: str | None = None) -> Rule:
    """Make the rule for a whole number (no bool) from `least` to `most`."""
    return Rule(
        lambda value: is_whole(value, least, most), text or f"be a whole number from {least} to {most}"
    )


def number_above(least: float, most: float = 1e12) -> Rule:
    """Make the rule for a finite number (no bool) above `least` and at most `most`."""
    return Rule(lambda value: is_number(value, least, most), f"be a number above {least:g}")


OBJECT = Rule(lambda value: isinstance(value, dict), "be an object")
_SWITCH = Rule(lambda value: isinstance(value, bool), "be true or false")
_TOKEN_ID = whole_number(-1, 1 << 24, "be the id of a token")
_TOKEN_IDS = Rule(
    lambda value: (
        bool(value) and all(map(_TOKEN_ID.holds, value))
        if isinstance(value, list)
        else _TOKEN_ID.holds(value)
    ),
    "be the id of a token",
)
_GENERATION = {"eos_token_id": _TOKEN_IDS, "bos_token_id": _TOKEN_ID, "pad_token_id": _TOKEN_ID}


def _channels(above: float, text: str) -> Rule:
    """Make the rule for one number, or one per channel."""

    def holds(value: Any) -> bool:
        parts = value if isinstance(value, list) else [value]
        return 0 < len(parts) <= 4 and all(is_number(one, above, 1e6) for one in parts)

    return Rule(holds, text)


_PICTURES = {
    "image_mean": _channels(-math.inf, "be one number per channel"),
    "image_std": _channels(0, "be one number per channel, above 0"),
    "rescale_factor": number_above(0, 1e6),
    "resample": whole_number(0, 5, "be a filter of Pillow, 0 to 5"),
    "patch_size": whole_number(1, 1024),
    "temporal_patch_size": whole_number(1, 1024),
    "merge_size": whole_number(1, 1024),
}


def read_settings(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of a checkpoint.

    Raises CheckpointError if it is missing, damaged, too large, nested too deeply, or no object.
    """
    if not os.path.lexists(path):
        raise MissingFileError(f"there is no {path}: fetch the checkpoint again")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: fetch the checkpoint again")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes, and settings have at most {MAX_BYTES:,}: fetch or "
            "save the checkpoint again"
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
    """Return the settings files of a folder or a hub id by name; files that do not exist are left out.

    `vocabulary=False` leaves out the large ones, which only a tokenizer needs.
    """
    place = Path(path)
    names = [name for name in SETTINGS if vocabulary or name not in _VOCABULARIES]
    if place.is_dir():
        folder = place / hub.get("subfolder", "")
        # A broken link or a pipe is listed too: `read_settings` refuses it.
        return {name: folder / name for name in names if os.path.lexists(folder / name)}
    options = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    found = {name: cached_file(path, name, **options, **hub) for name in names}
    return {name: Path(file) for name, file in found.items() if file is not None}


def check_settings(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Read all of `files` and refuse values that would be ignored later or end in a traceback.

    Returns the objects by file name. Raises CheckpointError for a damaged file or a value that no checkpoint
    has.
    """
    read = {name: read_settings(file) for name, file in files.items()}
    if (
        name := "generation_config.json"
    ) in read:  # transformers takes another value for no end of the answer
        check_fields(files[name], read[name], _GENERATION)
    for name in ("processor_config.json", "preprocessor_config.json"):
        if name in read:
            found = read[name].get("image_processor", read[name])
            if not isinstance(found, dict):
                refuse(files[name], "image_processor", found, OBJECT.text)
            _check_pictures(files[name], found)
    return read


def check_fields(
    file: Path | str, values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = ""
) -> None:
    """Raise CheckpointError for the first value that breaks its rule; None and absent values pass."""
    for name, rule in rules.items():
        value = values.get(name)
        if value is not None and not rule.holds(value):
            refuse(file, prefix + name, value, rule.text)


def refuse(file: Path | str, name: str, value: Any, rule: str) -> NoReturn:
    """Raise CheckpointError for a value in a settings file; `rule` says what it must do or be."""
    raise CheckpointError(
        f"{file} has {name}={shorten(value)}, which must {rule}: fetch or save the checkpoint again"
    )


def shorten(value: Any) -> str:
    """Return a value for an error message, cut to a readable length."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    long = isinstance(value, (dict, list)) and len(value) >= 1000
    text = type(value).__name__ if long else repr(value)
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


def _check_pictures(file: Path, settings: dict[str, Any]) -> None:
    """Check the settings of an image processor."""
    check_fields(file, settings, _PICTURES)
    check_fields(file, settings, {name: _SWITCH for name in settings if name.startswith("do_")})
    for name in ("size", "crop_size", "min_pixels", "max_pixels"):
        for key, value in _sizes(name, settings.get(name)):
            # `longest_edge` is a limit of pixels in Qwen's settings, and no picture has more than MAX_PIXELS.
            most = 1 << 40 if key.endswith(("longest_edge", "max_pixels")) else MAX_PIXELS
            check_fields(file, {key: value}, {key: whole_number(1, most)})


def _sizes(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [(f"{name}.{key}", one) for key, one in value.items() if key not in ("min_aspect", "max_aspect")]
