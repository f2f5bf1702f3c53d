"""A value head estimates how likely an unfinished text leads to a right answer.

One linear layer with a sigmoid on the last hidden state of the same backbone (TSST has a second model of 7B
for it). It stands beside a checkpoint in two files, `NAME_head.safetensors` and `NAME_head.json`.

    save_value_head(head, "out/model")                         # value_head.safetensors, value_head.json
    head = load_value_head("out/model")
    attach_value_head(model, head)                             # Select(judge="value"), Tree(scorer="value")
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from reverse.errors import CheckpointError, MissingFileError, RequestError
from reverse.files.atomic_write import atomic_write, write_json
from reverse.files.text_reading import read_json
from reverse.models.checkpoints.tensor_files import open_files
from reverse.models.unwrapping import unwrap_model

__all__ = [
    "DEFAULT_NAME",
    "ValueHead",
    "attach_value_head",
    "find_value_head",
    "hidden_size_of",
    "load_value_head",
    "save_value_head",
]

FORMAT = 1
KIND = "reverse value head"
DEFAULT_NAME = "value"
LARGEST_WIDTH = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ValueHead(torch.nn.Module):
    """A linear layer from a hidden state to one number; `width` is the size of the hidden state."""

    def __init__(self, width: int):
        super().__init__()
        if not 1 <= width <= LARGEST_WIDTH:
            raise RequestError(f"width must lie between 1 and {LARGEST_WIDTH:,}, got {width!r:.80}")
        self.linear = torch.nn.Linear(width, 1, dtype=torch.float32)
        torch.nn.init.zeros_(self.linear.weight)  # the first value of every text is 1/2
        torch.nn.init.zeros_(self.linear.bias)

    @property
    def width(self) -> int:
        return self.linear.in_features

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the log-odds of hidden states (..., width), float32 or wider, shape (...)."""
        weight = self.linear.weight
        wide = torch.promote_types(torch.float32, hidden.dtype)
        hidden = hidden.to(device=weight.device, dtype=wide)
        return torch.nn.functional.linear(hidden, weight.to(wide), self.linear.bias.to(wide)).squeeze(-1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the values in [0, 1] of hidden states (..., width), shape (...)."""
        return torch.sigmoid(self.logits(hidden))


def hidden_size_of(model: Any) -> int:
    """The size of the last hidden state of a model."""
    return int(unwrap_model(model).config.get_text_config().hidden_size)


_attached: WeakKeyDictionary[Any, ValueHead] = WeakKeyDictionary()


def attach_value_head(model: Any, head: ValueHead | None) -> None:
    """Make `head` the value head of a model while both exist; None removes it.

    The model itself is not changed, so it is saved without the head. Raises RequestError if sizes differ.
    """
    base = unwrap_model(model)
    if head is None:
        _attached.pop(base, None)
        return
    _check_width(head.width, hidden_size_of(base), "this value head")
    _attached[base] = head.eval()


def find_value_head(model: Any) -> ValueHead | None:
    """The value head that is attached to a model, or None."""
    return _attached.get(unwrap_model(model))


def save_value_head(
    head: ValueHead,
    folder: str | Path,
    name: str = DEFAULT_NAME,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a head beside a checkpoint. The JSON comes last: without it there is no head.

    Args:
        name: of the head; a checkpoint may have several.
        notes: what it was trained with, as JSON.

    Raises:
        RequestError: the name is not a plain name.
        MissingFileError: there is no such folder.
    """
    from safetensors.torch import save

    weights, settings = _paths(folder, name)
    if not Path(folder).is_dir():
        raise MissingFileError(f"no such folder: {folder}: a value head is saved beside its checkpoint")
    tensors = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    settings.unlink(missing_ok=True)  # it would describe other weights
    with atomic_write(weights) as stream:
        stream.write(save(tensors))
    write_json(settings, {"kind": KIND, "format": FORMAT, "width": head.width, "notes": dict(notes or {})})


def load_value_head(folder: str | Path, name: str = DEFAULT_NAME, *, model: Any = None) -> ValueHead:
    """Read a head that `save_value_head` has written.

    Args:
        model: attach the head to this model.

    Raises:
        MissingFileError: there is no head of this name.
        CheckpointError: its files are damaged, of another format, or its size is not the model's.
    """
    weights, settings = _paths(folder, name)
    if not (settings.is_file() and weights.is_file()):
        raise MissingFileError(
            f"{folder} has no value head {name!r}: {settings.name} and {weights.name} were looked for; train "
            "one with `reverse value-head`"
        )
    found = read_json(settings)
    known = found if isinstance(found, dict) else {}
    width = known.get("width")
    if known.get("kind") != KIND or known.get("format") != FORMAT or type(width) is not int:
        raise CheckpointError(
            f"{settings} is not the settings file of a value head, format {FORMAT}: train it again"
        )
    if not 1 <= width <= LARGEST_WIDTH:
        raise CheckpointError(f"{settings}: width must lie between 1 and {LARGEST_WIDTH:,}, got {width:,}")
    if model is not None:
        _check_width(width, hidden_size_of(model), str(weights))
    head = ValueHead(width)
    _load_weights(head, weights)
    if model is not None:
        head.to(next(unwrap_model(model).parameters()).device)
        attach_value_head(model, head)
    return head


def _load_weights(head: ValueHead, path: Path) -> None:
    """Put the tensors of a file into a head. Raises CheckpointError unless they are exactly the head's."""
    tensors = open_files([path])
    shapes = tensors.shapes()
    wanted = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    if shapes != wanted:
        raise CheckpointError(f"{path} holds tensors {shapes}, a value head has {wanted}: train it again")
    loaded = {name: tensors[name].clone() for name in tensors}
    if not all(torch.isfinite(value).all() for value in loaded.values()):
        raise CheckpointError(f"{path} holds values that are not finite: train it again")
    head.load_state_dict(loaded)


def _check_width(width: int, wanted: int, what: str) -> None:
    if width != wanted:
        raise CheckpointError(
            f"{what} is for hidden states of size {width:,}, and the model's are of size {wanted:,}: take "
            "the head that was trained with this model"
        )


def _paths(folder: str | Path, name: str) -> tuple[Path, Path]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"the name of a value head must consist of letters, digits, - and _, got {name!r:.80}"
        )
    return Path(folder) / f"{name}_head.safetensors", Path(folder) / f"{name}_head.json"
