"""Load a checkpoint of any family, with the three tokens, from a folder or a hub.

    >>> import reverse
    >>> model, processor = reverse.load("llava-with-tokens", device="cuda", dtype="bfloat16")

It refuses pickled weights and code beside the weights, which could run anything; a vocabulary without the
three tokens, which cannot say which phrase is rejected; a tensor that is missing or has a foreign name, which
transformers would fill with random numbers. Settings, names and shapes are checked before a model is built,
and the weights are read last.
"""

import logging
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import cached_file

from reverse.errors import CheckpointError, MissingFileError, RequestTypeError, ReverseError
from reverse.model_building import building_alone
from reverse.models.checkpoints.config_checks import (
    build_config,
    build_empty,
    check_config_values,
    check_depth,
)
from reverse.models.checkpoints.settings_files import check_settings, find_settings, read_settings
from reverse.models.checkpoints.tensor_files import Tensors, open_files
from reverse.models.checkpoints.tensor_names import (
    canonical_name,
    check_loaded,
    compare_tensors,
    refuse_foreign_prefixes,
)
from reverse.models.checkpoints.weight_files import (
    check_weight_files,
    fetch_weight_files,
    link_without_adapter,
    unused_weights,
)
from reverse.models.devices import check_device
from reverse.models.families import Family, family_named, stored_threshold
from reverse.models.processors.picture_processors import check_backend, load_processor
from reverse.models.processors.processor_checks import complete_processor
from reverse.models.value_head import DEFAULT_NAME, load_value_head
from reverse.tokens.vocabulary import ensure_ordinary_tags, find_token_ids

logger = logging.getLogger(__name__)

BUNDLED = ("tiny-llava", "tiny-qwen", "tiny-reasoner")
ASSETS = Path(__file__).resolve().parents[2] / "assets"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is enough
PICTURE_FILES = ("processor_config.json", "preprocessor_config.json")  # one of them is enough

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
# Options of from_pretrained that `load` sets itself, and options that rename the tensors of the files.
_OWN_OPTIONS = ("adapter_kwargs", "gguf_file", "output_loading_info", "state_dict", "use_safetensors")
_RENAMING_OPTIONS = ("config", "key_mapping")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NO_FOLDER = "no-adapter"  # a folder that does not exist: transformers looks there for an adapter
_warned: set[str] = set()  # checkpoints that the warning about files beside the weights was given for


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
        path_or_id: a folder, a hub id, or the name of a bundled model: "tiny-llava", "tiny-qwen" or
            "tiny-reasoner".
        dtype: of the weights; by default as they were saved.
        device: of the model; by default the CPU, unless `device_map` is among `kwargs`.
        attn_implementation: "sdpa", "eager" or "flash_attention_2" (needs flash-attn).
        require_tokens: refuse a vocabulary without `<SPAN>`, `</CN>`, `</UN>`. Tags that were saved as
            special tokens become ordinary either way.
        image_backend: "pil" or "torchvision"; their pixels differ slightly.
        kwargs: for `from_pretrained` of the model; `revision`, `cache_dir`, `token`, `local_files_only` and
            `force_download` go to the processor too.

    Returns:
        The model, of the family's class of transformers, and its processor. A value head beside the weights
        (`reverse.models.value_head`) is attached to the model.

    Raises:
        MissingFileError: there is no such folder, or it lacks config.json, weights, tokenizer or the image
            processor's settings.
        CheckpointError: unknown architecture; code beside the weights; pickled weights; damaged files; no
            tokens.
        RequestError: a device or an image backend does not exist; `trust_remote_code` or another argument of
            `from_pretrained` is given that this function sets itself.
    """
    _check_options(kwargs)
    if device is not None:
        check_device(device)
    kind = find_dtype(dtype)
    check_backend(image_backend)
    hub = _hub_options(kwargs)
    path, family = find_checkpoint(path_or_id, variant=kwargs.get("variant"), **hub)

    processor = load_fitting_processor(path, family, backend=image_backend, **hub)
    if require_tokens:
        find_token_ids(processor)

    model = load_weights(path, family, dtype=kind, attn_implementation=attn_implementation, **kwargs)
    _check_rows(path, model, processor)
    if device is not None:
        model = model.to(device)
    if Path(path, f"{DEFAULT_NAME}_head.json").is_file():
        load_value_head(path, model=model)
    return model.eval(), processor


def load_fitting_processor(
    path: str, family: Family, *, backend: str = "pil", model: str | None = None, **hub: Any
) -> Any:
    """Load the processor of a checkpoint that `find_checkpoint` accepted, completed from its config.json.

    It pads on the left, and tags that were saved as special tokens are ordinary. `model` is another
    checkpoint whose config.json is taken: an adapter's folder has a processor and no model.

    Raises CheckpointError if its files are damaged, or if it does not fit the model.
    """
    settings = check_settings(find_settings(path, hub))
    try:
        processor = load_processor(path, family, backend=backend, **hub)
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # tokenizers and transformers raise anything for damaged files
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"tokenizer or processor settings of {path!r} are damaged ({reason}): fetch them again"
        ) from error
    processor.tokenizer.padding_side = "left"
    ensure_ordinary_tags(processor)
    file, values = _read_config(model or path, hub if model is None else {})
    complete_processor(path, processor, build_config(file, values, family), family, settings)
    return processor


def find_checkpoint(
    path_or_id: str | os.PathLike, *, variant: str | None = None, **hub: Any
) -> tuple[str, Family]:
    """Return a checkpoint's place and family. Refuses what `load` refuses, before any large file is read.

    `hub` are options of the hub, such as `revision`; `variant` is that of the weights. Raises what `load`
    raises.
    """
    path = resolve_path(path_or_id)
    file, config = _read_config(path, hub)
    family = _check_architecture(path, config)
    check_config_values(file, config, family)
    check_weight_files(path, hub, variant)
    folder = Path(path) / hub.get("subfolder", "")
    for what, names in (("tokenizer", TOKENIZER_FILES), ("image processor", PICTURE_FILES)):
        if Path(path).is_dir() and not any((folder / name).is_file() for name in names):
            raise MissingFileError(
                f"{path!r} has no {what} ({' or '.join(names)}): the checkpoint is not complete, fetch or "
                "save it again with its processor"
            )
    check_settings(find_settings(path, hub, vocabulary=False))
    return path, family


def load_weights(path: str, family: Family, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """Load the model of a checkpoint that `find_checkpoint` accepted, from safetensors, without adapters.

    Raises CheckpointError if the files do not hold exactly the tensors of the model, or are damaged.
    """
    files = fetch_weight_files(path, _hub_options(kwargs), kwargs.get("variant"))
    if not any(name in kwargs for name in _RENAMING_OPTIONS):
        _check_tensors(path, open_files(files), family, _hub_options(kwargs))
    _warn_of_unused_files(path, files)
    place, view = path, None
    if Path(path).is_dir() and (files[0].parent / "adapter_config.json").exists():
        place = view = str(link_without_adapter(files[0].parent, files))
        kwargs.pop("subfolder", None)
    try:
        with building_alone():
            model, info = getattr(transformers, family.model_class).from_pretrained(
                place,
                dtype=dtype if dtype is not None else "auto",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                adapter_kwargs={"subfolder": _NO_FOLDER},
                **kwargs,
            )
    except BaseException as error:
        if view is not None:
            shutil.rmtree(view, ignore_errors=True)
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise RequestTypeError(
                f"load() has no option {str(error).rpartition('argument ')[2]}: leave it out; see "
                "help(reverse.load) and transformers' from_pretrained for the options that exist"
            ) from error
        if isinstance(error, SafetensorError):
            raise CheckpointError(
                f"the weights of {path!r} are damaged or cut off ({error}): fetch them again"
            ) from error
        if isinstance(error, ValueError) and not isinstance(error, ReverseError):
            raise CheckpointError(str(error)) from error  # an option or a setting that transformers refuses
        raise
    if view is not None:
        weakref.finalize(model, shutil.rmtree, view, ignore_errors=True)
        model.name_or_path = model.config.name_or_path = path
    if getattr(model, "_hf_peft_config_loaded", False):
        raise CheckpointError(
            f"transformers {transformers.__version__} applied the adapter that lies beside the weights of "
            f"{path!r}: move adapter_config.json out of the folder"
        )
    check_loaded(path, info)
    return model


def resolve_path(path_or_id: str | os.PathLike) -> str:
    """Return the folder of a checkpoint or of a bundled model, or a hub id unchanged.

    Raises MissingFileError if there is no such folder and the name cannot be a hub id.
    """
    if not isinstance(path_or_id, str | os.PathLike):
        raise RequestTypeError(
            f"a checkpoint is named by a text or a path, got {path_or_id!r:.80}: name a folder"
        )
    name = os.fspath(path_or_id)
    possible = f"a hub id (owner/name) or one of {', '.join(BUNDLED)}"
    if not name.strip():
        raise CheckpointError(f"the checkpoint's name is empty, got {name!r}: name a folder, {possible}")
    if Path(name).is_dir():
        return name
    if name in BUNDLED:
        if not (ASSETS / name).is_dir():
            raise MissingFileError(
                f"this installation has no bundled {name!r} (looked in {str(ASSETS / name)!r}): install a "
                "released wheel, or name a checkpoint folder"
            )
        return str(ASSETS / name)
    if Path(name).is_file():
        raise MissingFileError(f"{name!r} is a file: name the folder that holds config.json")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MissingFileError(f"there is no folder {name!r}: name a checkpoint folder, {possible}")
    return name


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the torch dtype that `dtype` names; None for None and "auto", which keep the dtype of the files.

    Raises CheckpointError if it is not a type that a model of float weights can have.
    """
    if dtype in (None, "auto"):
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in _DTYPES:
        raise CheckpointError(
            f"dtype {dtype!r:.80} is not a type of weights: try 'bfloat16', 'float16' or 'float32'"
        )
    return found


def check_no_code(path: str | os.PathLike, config: dict[str, Any]) -> None:
    """Raise CheckpointError if a config.json names code that transformers would run."""
    if "auto_map" in config:
        raise CheckpointError(
            f"{str(path)!r} wants to run its own code (auto_map in config.json: {config['auto_map']}): no "
            "code is run from a checkpoint; take auto_map out if you trust the rest"
        )


def check_tied_head(path: str | os.PathLike, tensors: Tensors, head: str, embedding: str) -> None:
    """Raise CheckpointError if a head that the config ties to the embeddings differs from them."""
    if not torch.equal(tensors[head], tensors[embedding]):
        raise CheckpointError(
            f"{str(path)!r} ties head and embeddings in its config.json, but its {head} differs from "
            f"{embedding}: set tie_word_embeddings to false in config.json if the head was trained apart, or "
            "take the head out of the files"
        )


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _HUB_OPTIONS if name in options}


def _check_tensors(path: str, tensors: Tensors, family: Family, hub: dict[str, Any]) -> None:
    """Compare the headers of the weight files with the model that config.json describes."""
    refuse_foreign_prefixes(path, tensors)
    file, settings = _read_config(path, hub)
    config = build_config(file, settings, family)
    check_depth(file, config, len(tensors))
    if settings.get("quantization_config") is not None:
        return  # names and shapes of packed weights are the quantizer's; transformers' own report is checked
    compare_tensors(path, tensors.shapes(), build_empty(file, config, family), family)
    by_name = {canonical_name(name, family): name for name in tensors}
    head = by_name.get("lm_head.weight")
    if config.tie_word_embeddings and head is not None:
        embedding = next(name for plain, name in by_name.items() if plain.endswith("embed_tokens.weight"))
        check_tied_head(path, tensors, head, embedding)


def _warn_of_unused_files(path: str, files: list[Path]) -> None:
    """Log the files beside the weights that are not loaded, once for each checkpoint."""
    unused = unused_weights(files[0].parent, files)
    if unused and path not in _warned:
        _warned.add(path)
        logger.warning(
            "%s holds complete weights, and beside them %s: the weights are loaded as they stand, without "
            "these files. An adapter that was merged must not be applied twice; one that was not belongs "
            "into a folder of its own (`reverse merge ADAPTER OUT --base BASE`)",
            path,
            ", ".join(unused[:5]),
        )


def _read_config(path: str, hub: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Read config.json; return its path and content.

    (AutoConfig would offer to run the code that it names.)
    """
    reason = ""
    try:
        file = cached_file(path, "config.json", **hub)
    except OSError as error:
        file, reason = None, f" ({error})"
    if file is None and (Path(path) / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path!r} is a LoRA adapter: merge it first, `reverse merge ADAPTER OUT --base BASE`"
        )
    if file is None:
        raise MissingFileError(
            f"{path!r} has no config.json that can be read{reason}: name a folder that `save_pretrained` "
            "wrote, or check the hub id and the connection"
        )
    return Path(file), read_settings(Path(file))


def _check_architecture(path: str, config: dict[str, Any]) -> Family:
    """Return the family that `config` names. Raises CheckpointError for code and unknown architectures."""
    family = family_named(config.get("model_type"), f"{path!r} ({config.get('architectures')})")
    check_no_code(path, config)
    stored_threshold(config.get("reverse"))
    return family


def _check_options(options: dict[str, Any]) -> None:
    """Raise RequestTypeError for options of `from_pretrained` that `load` sets itself."""
    if "trust_remote_code" in options:
        raise RequestTypeError(
            "trust_remote_code is not accepted, leave it out: no code of a checkpoint is run"
        )
    given = [name for name in _OWN_OPTIONS if name in options]
    if given:
        raise RequestTypeError(
            f"{given[0]} is not accepted: complete safetensors weights of a folder or a hub id are loaded, "
            "and what does not fit is refused; leave it out"
        )


def _check_rows(path: str, model: Any, processor: Any) -> None:
    """Raise CheckpointError if the tokenizer has ids beyond the rows of the embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = processor.tokenizer.get_vocab()
    highest = max(ids, key=ids.__getitem__)
    if ids[highest] >= rows:
        raise CheckpointError(
            f"{path!r}: the tokenizer gives {highest!r} the id {ids[highest]}, but the model has {rows} "
            "embedding rows: tokenizer and weights do not belong to one checkpoint; run `reverse tokens "
            "add BASE OUT` on the base"
        )
