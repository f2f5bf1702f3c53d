"""The names of tensors in files: one name for all spellings, foreign prefixes, and what a model must hold.

transformers loads a checkpoint that lacks a tensor, or spells it otherwise, with random numbers in its place
and a warning. Here the names and shapes in the headers of the files are compared with the model that
config.json describes before any weight is read, and transformers' own report is checked afterwards.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from reverse.errors import CheckpointError
from reverse.models.families import Family

FOREIGN = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.", "_forward_module.")
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids)$")
_HEAD = "lm_head.weight"
_SHOWN = 3  # names in a message

Shape = tuple[int, ...]


def canonical_name(name: str, family: Family) -> str:
    """Return the current name of a tensor, whichever version of transformers wrote it."""
    for pattern, replacement in family.tensor_spellings:
        name = re.sub(pattern, replacement, name)
    return name


def is_computed(name: str) -> bool:
    """Whether a tensor is a buffer that every model computes itself, so that files need not hold it."""
    return _COMPUTED.search(name) is not None


def refuse_foreign_prefixes(place: str, names: Iterable[str]) -> None:
    """Raise CheckpointError if names have a prefix that torch.compile, DDP, FSDP or peft added."""
    names = list(names)
    for prefix in FOREIGN:
        found = [name for name in names if f".{prefix}" in f".{name}"]
        if found:
            raise CheckpointError(
                f"{place!r} holds {len(found)} of {len(names)} tensors under names with {prefix!r} "
                f"({_listed(found)}): a wrapped model (torch.compile, DDP, FSDP, peft) was saved, and its "
                "names are not the model's; unwrap it (model._orig_mod, model.module, "
                "accelerator.unwrap_model(model), peft: `reverse merge`) and save it again with "
                "save_pretrained"
            )


def compare_tensors(place: str, found: Mapping[str, Shape], model: Any, family: Family) -> None:
    """Refuse files that do not hold exactly the tensors of `model`, which may stand on the meta device.

    Args:
        place: the checkpoint, for the message.
        found: the shapes in the files, by the names that stand there.
        model: built from the checkpoint's configuration.
        family: of the model.

    Raises CheckpointError if tensors are missing, superfluous, held twice or of another shape; the message
    says how many, and names the first.
    """
    refuse_foreign_prefixes(place, found)
    wanted: dict[str, Shape] = {
        canonical_name(name, family): tuple(value.shape)
        for name, value in model.state_dict().items()
        if not is_computed(name)
    }
    given: dict[str, Shape] = {}
    twice = []
    for name in (name for name in found if not is_computed(name)):
        plain = canonical_name(name, family)
        if plain in given:
            twice.append(name)
        given[plain] = tuple(found[name])
    if twice:
        raise CheckpointError(
            f"{place!r} holds {_count(twice)} twice under two names ({_listed(twice)}): {_REMEDY}"
        )
    tied = {_HEAD} if model.config.tie_word_embeddings else set()
    other = [
        (name, given[name], wanted[name]) for name in wanted if given.get(name, wanted[name]) != wanted[name]
    ]
    _report_differences(place, wanted.keys() - given.keys() - tied, given.keys() - wanted.keys(), other)


def check_loaded(place: str, info: Mapping[str, Any]) -> None:
    """Refuse what `from_pretrained(..., output_loading_info=True)` reports as not loaded from the files.

    It is a second check, with the names of the installed transformers. Raises what `compare_tensors` raises.
    """
    messages = [str(message) for message in info.get("error_msgs") or ()]
    if messages:
        raise CheckpointError(f"the weights of {place!r} cannot be loaded ({messages[0]:.300}): {_REMEDY}")
    _report_differences(
        place,
        info.get("missing_keys") or (),
        [name for name in info.get("unexpected_keys") or () if not is_computed(name)],
        [(name, tuple(found), tuple(wanted)) for name, found, wanted in info.get("mismatched_keys") or ()],
    )


def _report_differences(
    place: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Shape, Shape]],
) -> None:
    """Raise CheckpointError if any of the three is not empty; `mismatched` has shapes in files and model."""
    parts = []
    if missing := sorted(missing):
        parts.append(f"lacks {_count(missing)} that its config.json asks for ({_listed(missing)})")
    if unexpected := sorted(unexpected):
        parts.append(f"holds {_count(unexpected)} that its config.json does not know ({_listed(unexpected)})")
    if mismatched := sorted(mismatched):
        shown = [
            f"{name}: {found} in the files, {wanted} by config.json" for name, found, wanted in mismatched
        ]
        parts.append(f"holds {_count(shown)} of another shape ({_listed(shown)})")
    if parts:
        untied = f"; {_TIE}" if missing == [_HEAD] else ""
        raise CheckpointError(f"{place!r} {' and '.join(parts)}: {_REMEDY}{untied}")


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _listed(names: Iterable[str]) -> str:
    names = [name if len(name) <= 120 else name[:120] + "…" for name in names]
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


_REMEDY = (
    "weights and config.json are not of one model, or the checkpoint is not complete; fetch or save it again"
)
_TIE = (
    'a model whose head is the matrix of its embeddings says so: write "tie_word_embeddings": true into '
    "config.json if this is one"
)
