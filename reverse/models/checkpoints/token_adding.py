"""Write a copy of a checkpoint on disk that knows the three tokens.

    reverse tokens add llava-hf/llava-1.5-7b-hf llava-with-tokens

It refuses whatever `load` refuses, because a base is no more trusted than any other checkpoint.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from reverse.files.atomic_write import atomic_write_dir, check_new
from reverse.models.checkpoints.loading import find_checkpoint, load_weights
from reverse.models.checkpoints.tokenizer_loading import load_tokenizer
from reverse.tokens.spans import TokenIds
from reverse.tokens.vocabulary import add_tokens, check_token_init

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.md", "LICENSE*"]
_REWRITTEN = {"config.json", "generation_config.json", "added_tokens.json", "special_tokens_map.json"}


def add_tokens_to_checkpoint(
    base: str | os.PathLike,
    out: str | os.PathLike,
    *,
    init: str | Mapping[str, str] = "mean",
    seed: int = 0,
) -> TokenIds:
    """Write a copy of checkpoint `base` that has the three tokens to the folder `out`.

    The copy is written into a temporary folder beside `out` that is renamed at the end, so `out` is complete
    or does not exist; a run that is killed leaves `.out.*` behind, which may be deleted. Weights keep their
    dtype and are read and written as safetensors only. Small files that do not change (image processor, chat
    template, licence) are copied.

    Raises:
        OutputExistsError: `out` exists and is not an empty folder.
        MissingFileError, CheckpointError: `base` as for `load`; `init` as for `add_tokens`.
    """
    out = Path(out)
    check_new(out)
    path, family = find_checkpoint(base)
    tokenizer = load_tokenizer(path)
    check_token_init(tokenizer, init)
    model = load_weights(path, family)
    ids = add_tokens(model, tokenizer, init=init, seed=seed)

    with atomic_write_dir(out) as temporary:
        _copy_small_files(path, temporary)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return ids


def _copy_small_files(base: str, out: Path) -> None:
    """Copy the files of a checkpoint that hold neither weights, nor configuration, nor lists of tokens."""
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base, allow_patterns=_SMALL_FILES))
    for path in {path for pattern in _SMALL_FILES for path in folder.glob(pattern)}:
        if path.is_file() and path.name not in _REWRITTEN and not path.name.endswith(".index.json"):
            shutil.copyfile(path, out / path.name)
