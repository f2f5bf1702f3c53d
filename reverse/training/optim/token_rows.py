"""Train the rows of the three tokens without copying the whole matrix at every call.

peft writes the rows into a copy of the embedding matrix or of the head (262 MB for LLaVA-1.5-7B), whose
gradient is as large, although only three rows of it are used. Here the base layer is called unchanged, and
the tokens' entries of its output are replaced. DeepSpeed, too, gathers the matrix only inside that call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor

from reverse.compatibility import IncompatibleLibraryError
from reverse.training.optim.module_views import view_module

__all__ = ["TokenRows", "check_token_rows", "use_token_rows", "view_token_rows"]


class TokenRows(TrainableTokensLayer):
    """peft's layer for trained token rows, with a cheaper forward pass that gives the same result."""

    def forward_adapters(self, x: Tensor, active_adapters: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the base layer for `x`, with the active adapters' rows in place of the tokens'
        rows.
        """
        if self.disable_adapters or self.merged or not active_adapters:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        base = self.get_base_layer()
        out = base(x, *args, **kwargs)
        for name in active_adapters:
            rows = self.trainable_tokens_delta[name]  # (tokens, hidden size)
            ids = torch.as_tensor(self.token_indices[name], device=x.device)
            if isinstance(base, torch.nn.Embedding):
                at = x[..., None] == ids  # (…, tokens)
                own = at.to(rows.dtype) @ rows  # exact: one row, or none
                out = torch.where(at.any(-1, keepdim=True), own.to(out.dtype), out)
            else:
                dtype = out.dtype if torch.is_autocast_enabled(x.device.type) else rows.dtype
                logits = F.linear(x.to(dtype), rows.to(dtype))
                out = out.index_copy_(-1, ids, logits.to(out.dtype))  # nothing else holds the base's output
        return out


def view_token_rows(layer: TrainableTokensLayer) -> TokenRows:
    """Return Return `layer` as a `TokenRows` with the same state."""
    return view_module(layer, TokenRows)


def use_token_rows(model: Any) -> None:
    """Replace each of peft's layers for token rows in `model` by a `TokenRows`."""
    check_token_rows(view_token_rows)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, TrainableTokensLayer):
                setattr(module, name, view_token_rows(child))


@cache
def check_token_rows(replace: Callable[[Any], Callable[[Tensor], Tensor]]) -> None:
    """Raise unless `replace(layer)` computes the same as peft's layer for token rows, on a small one."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        small = torch.nn.ModuleDict(
            {
                "rows": torch.nn.Embedding(8, 4),
                "inner": torch.nn.Linear(4, 4),
                "head": torch.nn.Linear(4, 8, bias=False),
            }
        )
        indices = {"rows": [2, 5], "head": [2, 5]}
        adapted = get_peft_model(small, LoraConfig(target_modules=["inner"], trainable_token_indices=indices))
        layers = [module for module in adapted.modules() if isinstance(module, TrainableTokensLayer)]
        given = [torch.tensor([[1, 2, 5, 7]]), torch.randn(1, 3, 4)]
        try:
            for layer, x in zip(layers, given, strict=True):
                torch.nn.init.normal_(layer.trainable_tokens_delta["default"])
                if not torch.allclose(replace(layer)(x), layer(x), atol=1e-5):
                    raise IncompatibleLibraryError("peft", "TrainableTokensLayer computes something else")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IncompatibleLibraryError("peft", f"TrainableTokensLayer was changed ({error})") from error
