"""Find modifications of a model that its weights do not show: the captured step reads weights and calls no
module.

Hooks, replaced `forward` methods, adapters, parametrizations and layers of other classes change what a
model says without changing the weights that are read. They are looked for wherever a decode step passes: in
the text decoder, the head and the modules around them. The vision tower and the projector run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from reverse.models import family_of

__all__ = ["find_modification"]

_STOCK = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, nn.Dropout, nn.Identity)
_STOCK_CODE = ("transformers.models.", "transformers.activations")
# Hooks that only look on, by module and name: transformers registers the first where hidden states were once
# asked for, and the second for gradient checkpointing; it stays when checkpointing is off again.
_ONLOOKERS = (
    ("transformers.utils.output_capturing", ""),
    ("transformers.modeling_utils", "PreTrainedModel.enable_input_require_grads."),
)
_ATTENTION = (
    None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4",
)  # fmt: skip


def find_modification(model: Any) -> str | None:
    """Return what a captured step would miss of `model`, with the module's name; None if nothing."""
    hooks = torch.nn.modules.module
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        for hook in getattr(hooks, name).values():
            return f"a hook on every module is registered ({_name_of(hook)})"
    for name, module in _decoding_modules(model):
        why = _find_on_module(module)
        if why is not None:
            return f"{name or type(model).__name__} {why}"
    return _find_in_settings(model)


def _decoding_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    family = family_of(model)
    pictures = (family.tower, family.projector)
    for name, module in model.named_modules():
        if not any(name == path or name.startswith(f"{path}.") for path in pictures):
            yield name, module


def _find_on_module(module: nn.Module) -> str | None:
    if hasattr(module, "_hf_hook"):
        return "is dispatched or offloaded by accelerate"
    if parametrize.is_parametrized(module):
        return f"is parametrized ({', '.join(module.parametrizations)})"  # type: ignore[arg-type]
    kind = type(module)
    if kind not in _STOCK and not kind.__module__.startswith(
        ("transformers.models.", "transformers.activations")
    ):
        return f"is a {kind.__name__} of {kind.__module__}: merge adapters, load without quantisation"
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        if not _only_looks_on(hook):
            return f"has a forward hook ({_name_of(hook)})"
    forward = vars(module).get("forward")
    if forward is not None and not _is_own_forward(module, forward):
        return f"has another forward ({_name_of(forward)})"
    if not isinstance(module, nn.ModuleList) and (foreign := _foreign_code(kind.forward)) is not None:
        return f"has another forward ({_name_of(kind.forward)}, of {foreign}) in its class {kind.__name__}"
    for name, parameter in module.named_parameters(recurse=False):
        if type(parameter) is not nn.Parameter:
            return f"has a {type(parameter).__name__} for its {name}"
    return None


def _only_looks_on(hook: Any) -> bool:
    module, name = getattr(hook, "__module__", None), getattr(hook, "__qualname__", "")
    return any(module == known and name.startswith(start) for known, start in _ONLOOKERS)


def _is_own_forward(module: nn.Module, forward: Any) -> bool:
    """Whether a replaced `forward` is the class's own, compiled: `model.forward =
    torch.compile(model.forward)`.
    """
    while hasattr(forward, "_torchdynamo_orig_callable"):
        forward = forward._torchdynamo_orig_callable
    return (
        getattr(forward, "__func__", None) is type(module).forward
        and getattr(forward, "__self__", None) is module
    )


def _foreign_code(function: Any) -> str | None:
    """Return the package of a function, or of one that it wraps, if it is neither torch nor transformers.

    `__module__` would not do: `functools.wraps` copies it.
    """
    while function is not None:
        defined = getattr(function, "__globals__", {}).get("__name__", "an unknown place")
        if defined.split(".")[0] not in ("torch", "transformers"):
            return defined
        function = getattr(function, "__wrapped__", None)
    return None


def _find_in_settings(model: Any) -> str | None:
    """Find numbers that modules took from the configuration at construction and that now differ from it."""
    config = model.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None)
    if attention not in _ATTENTION:
        return f"attn_implementation={attention!r} may compute something else"
    language = family_of(model).decoder(model)
    if len(language.layers) != config.num_hidden_layers:
        return f"it has {len(language.layers)} layers and num_hidden_layers={config.num_hidden_layers}"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for i, layer in enumerate(language.layers):
        scale = getattr(layer.self_attn, "scaling", width**-0.5)
        if abs(scale - width**-0.5) > 1e-6:
            return f"layer {i} scales attention by {scale}, not by {width**-0.5}"
        for norm in (layer.input_layernorm, layer.post_attention_layernorm, language.norm):
            if norm.variance_epsilon != config.rms_norm_eps:
                return f"a norm of layer {i} adds {norm.variance_epsilon}, not {config.rms_norm_eps}"
    return None


def _name_of(function: Callable[..., Any]) -> str:
    function = getattr(function, "func", function)  # functools.partial
    return getattr(function, "__qualname__", type(function).__name__)
