"""The names of tensors in files: one name for all spellings, foreign prefixes, and what a model must hold.

transformers loads a checkpoint that lacks a tensor, or spells it otherwise, with random numbers in its place
and a warning. Here the names and shapes in the files' headers are compared with the model that config.json
describes before any weight is read, and transformers' own account once more afterwards.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from reverse.errors import CheckpointError
from reverse.models.families import Family

FOREIGN = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.", "_forward_module.")
_IGNORED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids)$")  # buffers that are computed anew
_SAME = {  # the spellings of transformers 4.36 to 5, each turned into the shortest
    "LLaVA": (
        (re.compile(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)"), ""),
        (re.compile(r"^language_model\.lm_head\."), "lm_head."),
        (re.compile(r"^language_model\.model\."), "language_model."),
        (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
    ),
    "Qwen2.5-VL": (
        (re.compile(r"^model\.(?=visual\.)"), ""),
        (re.compile(r"^model\.language_model\."), "model."),
    ),
}
_HEAD = "lm_head.weight"
_SHOWN = 3  # names in a message


def canonical_name(name: str, family: Family) -> str:
    """One name for a tensor, whichever version of transformers wrote it."""
    for pattern, replacement in _SAME.get(family.name, ()):
        name = pattern.sub(replacement, name)
    return name


def refuse_foreign_prefixes(place: str, names: Iterable[str]) -> None:
    """Refuse names that torch.compile, DDP, FSDP or peft put a prefix before.

    Raises ValueError with the prefix, the number of names and the remedy.
    """
    names = list(names)
    for prefix in FOREIGN:
        found = [name for name in names if f".{name}".find(f".{prefix}") >= 0]
        if found:
            raise CheckpointError(
                f"{place!r} holds {len(found)} of {len(names)} tensors under names with {prefix!r} "
                f"({_listed(found)}): a wrapped model (torch.compile, DDP, FSDP, peft) was saved, and its "
                f"names are not the model's; unwrap it (model._orig_mod, model.module, "
                "accelerator.unwrap_model(model), peft: `reverse merge`) and save it again with "
                "save_pretrained"
            )


def compare_tensors(place: str, found: Mapping[str, tuple[int, ...]], model: Any, family: Family) -> None:
    """Refuse files that do not hold exactly the tensors of `model`, which may stand on the meta device.

    Args:
        place: the checkpoint, for the message.
        found: the shapes in the files, by the names that stand there.
        model: built from the checkpoint's configuration.
        family: of the model.

    Raises:
        ValueError: tensors are missing, superfluous or of another shape; the first are named, and how many.
    """
    refuse_foreign_prefixes(place, found)
    wanted = {
        canonical_name(name, family): tuple(value.shape)
        for name, value in model.state_dict().items()
        if not _IGNORED.search(name)
    }
    given: dict[str, tuple[int, ...]] = {}
    twice = []
    for name, shape in found.items():
        plain = canonical_name(name, family)
        if plain in given:
            twice.append(name)
        if not _IGNORED.search(name):
            given[plain] = tuple(shape)
    if twice:
        raise CheckpointError(
            f"{place!r} holds {_tensors(twice)} twice under two names ({_listed(twice)}): {_AGAIN}"
        )
    tied = _HEAD if model.config.tie_word_embeddings else None
    missing = sorted(name for name in wanted.keys() - given.keys() if name != tied)
    report_differences(
        place,
        missing,
        sorted(given.keys() - wanted.keys()),
        [
            (name, given[name], wanted[name])
            for name in sorted(wanted)
            if given.get(name, wanted[name]) != wanted[name]
        ],
    )


def report_differences(
    place: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]],
) -> None:
    """Raise ValueError where any of the three holds something, naming the first of each and how many.

    `mismatched` are names with the shapes in the files and in the model.
    """
    parts = []
    if missing := sorted(missing):
        parts.append(f"lacks {_tensors(missing)} that its config.json asks for ({_listed(missing)})")
    if unexpected := sorted(unexpected):
        parts.append(
            f"holds {_tensors(unexpected)} that its config.json does not know ({_listed(unexpected)})"
        )
    if mismatched := sorted(mismatched):
        shown = [
            f"{name}: {tuple(found)} in the files, {tuple(wanted)} by config.json"
            for name, found, wanted in mismatched
        ]
        parts.append(f"holds {_tensors(shown)} of another shape ({_listed(shown)})")
    if parts:
        untied = f"; {_TIE}" if missing == [_HEAD] else ""
        raise CheckpointError(f"{place!r} {' and '.join(parts)}: {_AGAIN}{untied}")


def check_loaded(place: str, info: Mapping[str, Any], family: Family) -> None:
    """Refuse what `from_pretrained(..., output_loading_info=True)` says was not loaded as it stands in the
    files: a second look, by the names of the installed transformers.

    Raises ValueError as `compare_tensors`.
    """
    messages = [str(message) for message in info.get("error_msgs") or ()]
    if messages:
        raise CheckpointError(f"the weights of {place!r} cannot be loaded ({messages[0]:.300}): {_AGAIN}")
    report_differences(
        place,
        info.get("missing_keys") or (),
        [name for name in info.get("unexpected_keys") or () if not _IGNORED.search(name)],
        [(name, tuple(found), tuple(wanted)) for name, found, wanted in info.get("mismatched_keys") or ()],
    )


def _tensors(names: list) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _listed(names: Iterable[str]) -> str:
    names = [name if len(name) <= 120 else name[:120] + "…" for name in names]
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


_AGAIN = (
    "weights and config.json are not of one model, or the checkpoint is not complete; fetch or save it again"
)
_TIE = (
    'a model whose head is the matrix of its embeddings says so: write "tie_word_embeddings": true into '
    "config.json if this is one"
)
