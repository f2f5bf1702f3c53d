"""Merge a LoRA adapter into its base: a plain checkpoint that needs neither peft nor this library.

    reverse merge runs/llava llava-merged --base llava-with-tokens

Everything that training may have changed is merged: LoRA matrices, single token rows
(`trainable_token_indices`), and whole modules (`modules_to_save`: the projector). The contents of the
adapter's files decide, not their names. The base must be the one that was trained: shapes, architecture,
vocabulary and, if training left a card (`reverse.models.adapters.adapter_card`), a fingerprint of its
weights.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reverse.errors import CheckpointError, MissingFileError
from reverse.files.atomic_write import atomic_write_dir, check_new
from reverse.models.adapters.adapter_card import base_fingerprint, find_threshold, plain_name
from reverse.models.adapters.adapter_files import Adapter, read_adapter
from reverse.models.adapters.loose_weights import apply_loose_weights
from reverse.models.adapters.merge_check import (
    ProbeReport,
    cast_parameters,
    check_lora_bias,
    check_merged,
    retie_or_mark,
    run_probe,
    untie,
)
from reverse.models.checkpoints.loading import (
    PICTURE_FILES,
    TOKENIZER_FILES,
    find_checkpoint,
    find_dtype,
    load_fitting_processor,
    load_weights,
)
from reverse.models.families import Family, default_threshold, set_default_threshold
from reverse.tokens.vocabulary import add_tokens, find_token_ids


@dataclass(frozen=True)
class MergeReport:
    """What `merge_adapter` wrote."""

    out: str
    base: str
    layers: int  # with LoRA matrices
    rows: int  # single token rows, of embeddings and head
    modules: tuple[str, ...]  # modules that the adapter holds in full
    checked: bool  # the base's weights were compared with a fingerprint
    probe: ProbeReport  # how far the result is from the adapter on its base


def merge_adapter(
    adapter: str | os.PathLike,
    out: str | os.PathLike,
    *,
    base: str | os.PathLike | None = None,
    dtype: torch.dtype | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> MergeReport:
    """Write base plus adapter to the folder `out`, with tokenizer, processor and default threshold.

    The result is compared with the adapter on its base, on a probe, before anything is written. Embeddings
    and head that shared a matrix get one each if the adapter changes one of them, or both differently.

    Memory holds the base once, the adapter and one layer's product. Products are computed in float32 on the
    CPU and rounded once to the base's dtype. `out` is complete or does not exist.

    Args:
        adapter: folder with adapter_config.json and adapter_model.safetensors (a `.bin` is read by torch's
            restricted loader only), or with one subfolder that has them.
        out: folder to write; must not exist or be empty.
        base: checkpoint folder or hub id; by default the one that the card or adapter_config.json names.
        dtype: of the merged weights; by default as the base was saved.
        progress: called with the name of each phase when it begins.

    Raises:
        OutputExistsError: `out` is not empty.
        MissingFileError: no adapter, or no base.
        CheckpointError: several adapters; not LoRA; damaged files; a base that is not the adapter's: another
            architecture, shapes, vocabulary, no tokens, or other weights than the fingerprint says; biases
            that have no place; a result that differs from the adapter on its base.
    """
    out = Path(out)
    check_new(out)
    kind = find_dtype(dtype)
    say = progress or (lambda phase: None)
    found = read_adapter(adapter)
    base, path, family = _find_base(found, base)
    processor, of_base = _load_processors(found, path, family)

    say(f"reading {base}")
    model = load_weights(path, family)  # as saved: another dtype would have another fingerprint
    _check_vocabulary(found, path, model, processor, of_base)
    checked = _check_fingerprint(base, found.card, model)
    apply_loose_weights(model, found.loose, family)
    if kind is not None:
        cast_parameters(model, kind)

    say("merging")
    threshold = find_threshold(found.folder, found.card)
    merged, probe = _merge(model, found, family, processor)
    if threshold is not None:
        set_default_threshold(merged, threshold)
    default_threshold(merged)  # refuses a damaged one before anything is written

    say(f"writing {out}")
    with atomic_write_dir(out) as temporary:
        merged.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for licence in Path(path).glob("LICENSE*") if Path(path).is_dir() else ():
            shutil.copyfile(licence, temporary / licence.name)
    return MergeReport(
        str(out),
        base,
        layers=sum("lora_A" in name or "lora_embedding_A" in name for name in found.state),
        rows=sum(v.shape[0] for name, v in found.state.items() if "trainable_tokens_delta" in name),
        modules=tuple(found.settings.get("modules_to_save") or ()),
        checked=checked,
        probe=probe,
    )


def _find_base(adapter: Adapter, base: str | os.PathLike | None) -> tuple[str, str, Family]:
    """Return the name of the base, its folder or hub id, and its family."""
    card = adapter.card
    name = str(base or card.get("base") or adapter.settings.get("base_model_name_or_path") or "")
    if not name:
        raise MissingFileError(
            f"{str(adapter.folder)!r} does not say which base it belongs to: name it with --base BASE (base=)"
        )
    path, family = find_checkpoint(name)
    if card.get("model_type") and card["model_type"] not in family.model_types:
        raise CheckpointError(
            f"the adapter was trained on {card['model_type']!r}, and {name!r} is {family.name}: merge it "
            f"into {card.get('base') or 'its own base'}"
        )
    return name, path, family


def _load_processors(adapter: Adapter, path: str, family: Family) -> tuple[Any, Any]:
    """Load the adapter's processor, if training saved one, else the base's; and the base's.

    Raises CheckpointError for a base without the three tokens, or with other ids for them, before its weights
    are read.
    """
    of_base = load_fitting_processor(path, family)
    holds_all = all(
        any((adapter.folder / name).is_file() for name in names) for names in (TOKENIZER_FILES, PICTURE_FILES)
    )
    own = load_fitting_processor(str(adapter.folder), family, model=path) if holds_all else of_base
    if adapter.card.get("added_seed") is None:
        _check_ids(path, find_token_ids(of_base), adapter.card.get("tokens") or find_token_ids(own))
    return own, of_base


def _check_ids(path: str, ids: Iterable[int], trained: Iterable[int]) -> None:
    if list(ids) != list(trained):
        raise CheckpointError(
            f"{path!r} has <SPAN>, </CN>, </UN> at {list(ids)}, and the adapter was trained with them at "
            f"{list(trained)}: {_OTHER_VOCABULARY}"
        )


def _check_vocabulary(adapter: Adapter, path: str, model: Any, processor: Any, of_base: Any) -> None:
    """Raise CheckpointError for a base without the three tokens, or with other ids than in training."""
    card = adapter.card
    if card.get("added_seed") is not None:  # training added the tokens with this seed
        add_tokens(model, of_base, seed=int(card["added_seed"]))
        _check_ids(path, find_token_ids(of_base), card.get("tokens") or find_token_ids(processor))
    known = of_base.tokenizer.get_vocab()
    other = {token: i for token, i in processor.tokenizer.get_vocab().items() if known.get(token) != i}
    if other:
        token, here = next(iter(other.items()))
        raise CheckpointError(
            f"{str(adapter.folder)!r} has a tokenizer that gives {token!r} the id {here}, {path!r} gives it "
            f"{known.get(token)}, and {len(other)} tokens differ: {_OTHER_VOCABULARY}"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if card.get("rows") not in (None, rows):
        raise CheckpointError(
            f"{path!r} has {rows} embedding rows, and the adapter was trained on {card['rows']}: "
            f"{_OTHER_VOCABULARY}"
        )
    trained = adapter.settings.get("trainable_token_indices") or {}
    lists = trained.values() if isinstance(trained, dict) else [trained]
    highest = max((index for one in lists for index in one), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"the adapter trained row {highest}, and {path!r} has {rows} embedding rows: {_OTHER_VOCABULARY}"
        )


def _check_fingerprint(base: str, card: dict[str, Any], model: Any) -> bool:
    """Compare the base with the card's fingerprint; return whether the card has one.

    Raises CheckpointError.
    """
    recorded = card.get("fingerprint")
    if recorded is None:
        return False
    # Training in float16 rounds the weights as bfloat16 and float32 do not.
    through = torch.float16 if card.get("dtype") == "float16" else None
    found = base_fingerprint(model, kind=str(recorded).split("-")[0], through=through)
    if found != recorded:
        named = f" (it was trained on {card['base']!r})" if card.get("base") else ""
        raise CheckpointError(
            f"{base!r} has other weights than the base of this adapter{named}: shapes agree, the "
            f"fingerprints {recorded[:17]}… and {found[:17]}… do not; merge into the base that was trained"
        )
    return True


def _merge(model: Any, adapter: Adapter, family: Family, processor: Any) -> tuple[Any, ProbeReport]:
    """Return the merged base without peft's wrappers, and its difference from the unmerged adapter."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = embeddings.weight if embeddings.weight is head.weight else None
    kind = model.dtype
    wrapped = _wrap(model, adapter)
    check_lora_bias(wrapped)
    unmerged = run_probe(wrapped, family, processor)
    with wrapped.disable_adapter():
        of_base = run_probe(wrapped, family, processor)
    untie(wrapped, shared)
    try:
        merged = cast_parameters(wrapped.merge_and_unload(), kind)
    # Each kind of layer of peft refuses in its own way: a layer that cannot be merged, other shapes,
    # quantized weights, an operation that the device or dtype does not have.
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        raise CheckpointError(
            f"the adapter in {str(adapter.folder)!r} cannot be merged "
            f"({' '.join(str(error).split())[:300]}): decode with it unmerged, which reverse.generate() takes"
        ) from error
    retie_or_mark(merged, shared)
    probe = check_merged(unmerged, run_probe(merged, family, processor), of_base, kind)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        merged.__dict__.pop(attribute, None)
    merged.requires_grad_(True)
    return merged, probe


def _wrap(model: Any, adapter: Adapter) -> Any:
    """Put the adapter on its base. Raises CheckpointError if it does not fit, or holds NaN or infinity."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    wrong = (
        f"the adapter in {str(adapter.folder)!r} does not fit {type(model).__name__} of this base ({{}}): "
        "merge into the base that was trained"
    )
    try:
        config = LoraConfig.from_pretrained(str(adapter.folder))
        config.inference_mode = True
        wrapped = get_peft_model(model, config)  # its matrices stay in float32
        result = set_peft_model_state_dict(wrapped, adapter.state)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(wrong.format(" ".join(str(error).split())[:300])) from error
    names = [f"it has no {name}" for name in _absent(wrapped, result.missing_keys)]
    names += [f"unknown is {name}" for name in result.unexpected_keys]
    if names:
        raise CheckpointError(wrong.format("; ".join(names[:3]) + f", {len(names)} in all"))
    damaged = [name for name, value in adapter.state.items() if not torch.isfinite(value).all()]
    if damaged:
        raise CheckpointError(
            f"the adapter in {str(adapter.folder)!r} has values that are not finite ({damaged[0]}): train "
            "again"
        )
    return wrapped


def _absent(wrapped: Any, missing: list[str]) -> list[str]:
    """List the adapter's tensors that no file holds. A tied tensor needs only one of its names."""
    places = {name: value.data_ptr() for name, value in wrapped.state_dict(keep_vars=True).items()}
    given = {place for name, place in places.items() if name not in set(missing)}
    return [name for name in missing if plain_name(name) is None and places[name] not in given]


_OTHER_VOCABULARY = "its vocabulary is another one, merge into the base that was trained"
