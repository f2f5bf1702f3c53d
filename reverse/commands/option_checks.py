"""Checks of options, prompts and pictures that a command makes before it loads a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from reverse.decoding.mode_names import MODE_NAMES
from reverse.errors import RequestError

__all__ = ["build_mode", "check_decoding", "check_request", "choose_modes"]


def build_mode(name: str, settings: Mapping[str, Any]) -> Any:
    """Return the mode of a name with these settings; without any, the name itself.

    Raises:
        RequestError: the mode has no such setting, or the value is out of its range.
    """
    from reverse.modes import MODES

    if not settings:
        return name
    mode = MODES[name]
    known = [field.name for field in fields(mode)]  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            having = [other for other, each in MODES.items() if setting in {f.name for f in fields(each)}]  # type: ignore[arg-type]
            raise RequestError(f"--{setting} is not a setting of --mode {name}: {', '.join(having)} have it")
    return mode(**settings)


def choose_modes(names: Sequence[str], settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return each mode with those of the settings that it has.

    Raises:
        RequestError: a mode is unknown or named twice, none of them has a setting, or a value is out of its
            range.
    """
    for name in names:
        _check_mode_name(name)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RequestError(
            f"--mode {twice[0]} is given twice: give each mode once, and other settings with another --out"
        )
    from reverse.modes import MODES

    given = {name: value for name, value in settings.items() if value is not None}
    chosen = []
    for name in names:
        known = {each.name for each in fields(MODES[name])}  # type: ignore[arg-type]
        chosen.append((name, {key: value for key, value in given.items() if key in known}))
    for setting in given:
        if not any(setting in own for _, own in chosen):
            build_mode(names[0], {setting: given[setting]})  # says which modes have it
    for name, own in chosen:
        build_mode(name, own)
    return chosen


def _check_mode_name(name: str) -> None:
    """Refuse an unknown mode, before the modes are imported. Raises RequestError."""
    if name not in MODE_NAMES:
        raise RequestError(f"--mode must be one of {', '.join(MODE_NAMES)}, got {name!r:.80}")


def check_decoding(
    *,
    mode: str = "resample",
    max_new_tokens: int | None = None,
    do_sample: bool = False,
    temperature: float | None = None,
    **settings: Any,
) -> None:
    """Check the options of decoding.

    Args:
        settings: fields of `ResamplingConfig`; None means its default.

    Raises:
        RequestError: an option is out of its range, or would be ignored.
    """
    from reverse.decoding.config import ResamplingConfig, check_whole_number

    _check_mode_name(mode)
    if max_new_tokens is not None:
        check_whole_number("max_new_tokens", max_new_tokens, 1)
    if temperature and not do_sample:  # 0 means greedy decoding
        raise RequestError(
            f"--temperature {temperature:g} does nothing without --do-sample: add --do-sample, or leave "
            "--temperature out"
        )
    if temperature is not None and do_sample and temperature <= 0:
        raise RequestError(
            f"--temperature must be above 0, got {temperature:g}: leave --do-sample out to decode greedily"
        )
    ResamplingConfig(**{name: value for name, value in settings.items() if value is not None})


def check_request(images: Sequence[str], prompt: str, system: str | None = None) -> list[Any]:
    """Open the pictures of one request; check its prompt and its system turn.

    Raises:
        ReverseError: a picture cannot be read, the prompt is empty, or a text holds half of a surrogate pair.
    """
    from reverse.models.families import LLAVA
    from reverse.models.inputs.prompt_inputs import build_chats, open_picture

    build_chats([list(images)], [prompt], LLAVA, system)
    return [open_picture(image) for image in images]
