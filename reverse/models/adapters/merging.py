"""Merge a LoRA adapter into its base: a plain checkpoint that needs neither peft nor this library.

    reverse merge runs/llava llava-merged --base llava-with-tokens

What training may have touched is merged: LoRA matrices, single token rows (`trainable_token_indices`), and
whole modules (`modules_to_save`: the projector). All is found in the adapter's files, nothing in their names.
The base must be the one that was trained: shapes, architecture, vocabulary and, where training left a card
(`reverse.models.adapters.adapter_card`), a fingerprint of its weights.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from reverse.errors import CheckpointError, MissingFileError
from reverse.files.atomic_write import atomic_write_dir, check_new
from reverse.models.adapters.adapter_card import base_fingerprint, find_threshold, plain_name, read_card
from reverse.models.adapters.adapter_checks import check_ranks
from reverse.models.adapters.loose_weights import apply_loose_weights, find_loose_weights
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
    find_checkpoint,
    find_dtype,
    load_fitting_processor,
    load_weights,
)
from reverse.models.checkpoints.shards import load_pickle, read_json
from reverse.models.families import default_threshold, set_default_threshold
from reverse.models.processors.picture_processors import load_processor
from reverse.tokens.vocabulary import add_tokens, find_token_ids

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PICTURES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Merged:
    """What `merge_adapter` wrote."""

    out: str
    base: str
    layers: int  # with LoRA matrices
    rows: int  # single token rows, input and output
    modules: tuple[str, ...]  # taken over whole
    checked: bool  # the base's weights were compared with a fingerprint
    probe: ProbeReport  # how far the result is from the adapter on its base


def merge_adapter(
    adapter: str | os.PathLike,
    out: str | os.PathLike,
    *,
    base: str | os.PathLike | None = None,
    dtype: torch.dtype | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Merged:
    """Write base plus adapter to the folder `out`, with tokenizer, processor and default threshold.

    The result is compared with the adapter on its base, on a probe, before anything is written. Embeddings
    and head that shared a matrix get one each where the adapter changes one of them, or both differently.

    The base is held once; beside it stand the adapter and one layer's product. Products are computed in
    float32 on the CPU and rounded once to the base's dtype. `out` is complete or not there.

    Args:
        adapter: folder with adapter_config.json and adapter_model.safetensors (a `.bin` is read by torch's
            restricted loader only), or with one subfolder that has them.
        out: folder to write; must not exist or be empty.
        base: checkpoint folder or hub id; by default the one that the card or adapter_config.json names.
        dtype: of the merged weights; by default as the base was saved.
        progress: called with what is done next.

    Raises:
        FileExistsError: `out` is not empty.
        FileNotFoundError: no adapter, or no base.
        ValueError: several adapters; not LoRA; damaged files; a base that is not the adapter's: another
            architecture, shapes, vocabulary, no tokens, or other weights than the fingerprint says; biases
            that have no place; a result that does not say what the adapter said.
    """
    out = Path(out)
    check_new(out)
    kind = find_dtype(dtype)
    say = progress or (lambda what: None)
    folder = find_adapter(adapter)
    settings, card = read_json(folder / _CONFIG), read_card(folder)
    _check_settings(folder, settings)
    loose = find_loose_weights(folder, given=Path(adapter))
    state = _read_state(folder)
    check_ranks(folder, settings, state)

    base = str(base or card.get("base") or settings.get("base_model_name_or_path") or "")
    if not base:
        raise MissingFileError(
            f"{str(folder)!r} does not say which base it belongs to: name it with --base BASE (base=)"
        )
    path, family = find_checkpoint(base)
    if card.get("model_type") and card["model_type"] not in family.model_types:
        raise CheckpointError(
            f"the adapter was trained on {card['model_type']!r}, and {base!r} is {family.name}: merge it "
            f"into "
            f"{card.get('base') or 'its own base'}"
        )
    processor = _find_processor(folder, path, family)
    _check_tokens(path, card, processor, family)
    say(f"reading {base}")
    model = load_weights(path, family)  # as saved: another dtype would have another fingerprint
    _check_vocabulary(folder, path, card, settings, model, processor, family)
    checked = _check_fingerprint(base, card, model)
    apply_loose_weights(model, loose, family)

    if kind is not None:
        cast_parameters(model, kind)
    say("merging")
    threshold = find_threshold(folder, card)
    merged, report = _merge(model, folder, settings, state, family, processor)
    if threshold is not None:
        set_default_threshold(merged, threshold)
    default_threshold(merged)  # refuses a damaged one before anything is written
    say(f"writing {out}")
    with atomic_write_dir(out) as whole:
        merged.save_pretrained(whole)
        processor.save_pretrained(whole)
        _copy_licence(path, whole)
    return Merged(str(out), base, checked=checked, **report)


def find_adapter(path: str | os.PathLike) -> Path:
    """The folder that holds an adapter: `path` itself, or its only subfolder that is one.

    Raises FileNotFoundError where there is none, ValueError where there are several.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {str(folder)!r}: name the folder of an adapter")
    if (folder / _CONFIG).is_file():
        return folder
    below = sorted(file.parent for file in folder.glob(f"*/{_CONFIG}"))
    if len(below) > 1:
        names = ", ".join(repr(one.name) for one in below)
        raise CheckpointError(
            f"{str(folder)!r} holds {len(below)} adapters ({names}): name the folder of one"
        )
    if below:
        return below[0]
    found = sorted(file.name for file in folder.iterdir())[:5]
    raise MissingFileError(
        f"{str(folder)!r} has no {_CONFIG} (it holds {', '.join(found) or 'nothing'}): name the folder that "
        "peft's save_pretrained wrote"
    )


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    if str(settings.get("peft_type", "")).upper() != "LORA":
        raise CheckpointError(
            f"{folder / _CONFIG} is of type {settings.get('peft_type')!r}: only LoRA adapters can be merged"
        )


def _read_state(folder: Path) -> dict[str, torch.Tensor]:
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise MissingFileError(
            f"{str(folder)!r} has no {' or '.join(_WEIGHTS)}: the adapter is not complete, save it again"
        )
    if file.suffix == ".bin":
        return load_pickle(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}): fetch it again") from error


def _find_processor(folder: Path, base: str, family: Any) -> Any:
    """The processor that training saved beside the adapter, else the base's."""
    complete = all(any((folder / name).is_file() for name in names) for names in (_TOKENIZERS, _PICTURES))
    return load_fitting_processor(str(folder) if complete else base, family, model=base)


def _check_tokens(path: str, card: dict[str, Any], processor: Any, family: Any) -> None:
    """Refuse a base without the three tokens, or with others than the adapter's, before its weights are
    read."""
    if card.get("added_seed") is None:
        of_base = load_fitting_processor(path, family)
        _check_ids(path, find_token_ids(of_base), card.get("tokens") or find_token_ids(processor))


def _check_ids(path: str, ids: Iterable[int], trained: Iterable[int]) -> None:
    if list(ids) != list(trained):
        raise CheckpointError(
            f"{path!r} has <SPAN>, </CN>, </UN> at {list(ids)}, and the adapter was trained with them at "
            f"{list(trained)}: its vocabulary is another one, merge into the base that was trained"
        )


def _check_vocabulary(
    folder: Path, path: str, card: dict, settings: dict, model: Any, processor: Any, family: Any
) -> None:
    """Refuse a base that knows other ids than the adapter was trained on, or not the three tokens."""
    of_base = load_processor(path, family)
    if card.get("added_seed") is not None:  # as training did it
        add_tokens(model, of_base, seed=int(card["added_seed"]))
    ids = list(find_token_ids(of_base))  # refuses a base without them
    trained = card.get("tokens") or list(find_token_ids(processor))
    _check_ids(path, ids, trained)
    other = {
        token: (id_, found)
        for token, id_ in processor.tokenizer.get_vocab().items()
        if (found := of_base.tokenizer.get_vocab().get(token)) != id_
    }
    if other:
        token, (here, there) = next(iter(other.items()))
        raise CheckpointError(
            f"{str(folder)!r} has a tokenizer that gives {token!r} the id {here}, {path!r} gives it {there}, "
            f"and "
            f"{len(other)} tokens differ: their vocabularies are not the same, merge into the base that was "
            f"trained"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if card.get("rows") not in (None, rows):
        raise CheckpointError(
            f"{path!r} has {rows} embedding rows, and the adapter was trained on {card['rows']}: its "
            f"vocabulary "
            "is another one, merge into the base that was trained"
        )
    trained_rows = settings.get("trainable_token_indices") or {}
    lists = trained_rows.values() if isinstance(trained_rows, dict) else [trained_rows]
    highest = max((index for one in lists for index in one), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"the adapter trained row {highest}, and {path!r} has {rows} embedding rows: it is not the base "
            f"that "
            "was trained"
        )


def _check_fingerprint(base: str, card: dict[str, Any], model: Any) -> bool:
    recorded = card.get("fingerprint")
    if recorded is None:
        return False
    # Trained in float16, which rounds as bfloat16 and float32 do not.
    through = torch.float16 if card.get("dtype") == "float16" else None
    found = base_fingerprint(model, kind=str(recorded).split("-")[0], through=through)
    if found != recorded:
        named = f" (it was trained on {card['base']!r})" if card.get("base") else ""
        raise CheckpointError(
            f"{base!r} has other weights than the base of this adapter{named}: shapes agree, the "
            f"fingerprints "
            f"{recorded[:17]}… and {found[:17]}… do not; merge into the base that was trained"
        )
    return True


def _merge(
    model: Any,
    folder: Path,
    settings: dict[str, Any],
    state: dict[str, torch.Tensor],
    family: Any,
    processor: Any,
) -> tuple[Any, dict[str, Any]]:
    """The base with the adapter in it, without peft's wrappers, and what was merged."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    wrong = (
        f"the adapter in {str(folder)!r} does not fit {type(model).__name__} of this base ({{}}): merge into "
        f"the "
        "base that was trained"
    )
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = embeddings.weight if embeddings.weight is head.weight else None
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        wrapped = get_peft_model(model, config)  # its matrices stay in float32
        result = set_peft_model_state_dict(wrapped, state)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(wrong.format(" ".join(str(error).split())[:300])) from error
    absent = _not_given(wrapped, result.missing_keys)
    if absent or result.unexpected_keys:
        names = [f"it has no {name}" for name in absent] + [
            f"unknown is {name}" for name in result.unexpected_keys
        ]
        raise CheckpointError(wrong.format("; ".join(names[:3]) + f", {len(names)} in all"))
    damaged = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if damaged:
        raise CheckpointError(
            f"the adapter in {str(folder)!r} has values that are not finite ({damaged[0]}): train again"
        )
    rows = sum(value.shape[0] for name, value in state.items() if "trainable_tokens_delta" in name)
    report = {
        "layers": sum("lora_A" in name or "lora_embedding_A" in name for name in state),
        "rows": rows,
        "modules": tuple(settings.get("modules_to_save") or ()),
    }
    kind = model.dtype
    check_lora_bias(wrapped)
    unmerged = run_probe(wrapped, family, processor)
    with wrapped.disable_adapter():
        of_base = run_probe(wrapped, family, processor)
    untie(wrapped, shared)
    try:
        merged = cast_parameters(wrapped.merge_and_unload(), kind)
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        raise CheckpointError(
            f"the adapter in {str(folder)!r} cannot be merged ({' '.join(str(error).split())[:300]}): decode "
            "with it unmerged, which reverse.generate() takes"
        ) from error
    retie_or_mark(merged, shared)
    report["probe"] = check_merged(unmerged, run_probe(merged, family, processor), of_base, kind)
    for stray in ("peft_config", "_hf_peft_config_loaded"):
        merged.__dict__.pop(stray, None)
    merged.requires_grad_(True)
    return merged, report


def _not_given(wrapped: Any, missing: list[str]) -> list[str]:
    """Those of the adapter's tensors that no file gave; tied ones are given under one name of several."""
    places = {name: value.data_ptr() for name, value in wrapped.state_dict(keep_vars=True).items()}
    given = {place for name, place in places.items() if name not in set(missing)}
    return [name for name in missing if plain_name(name) is None and places[name] not in given]


def _copy_licence(base: str, out: Path) -> None:
    """A folder's licence goes with its weights."""
    folder = Path(base)
    for file in folder.glob("LICENSE*") if folder.is_dir() else ():
        if file.is_file():
            shutil.copyfile(file, out / file.name)
