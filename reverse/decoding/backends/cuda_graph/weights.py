"""The language model's weights as the captured step reads them: references, nothing is copied."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from reverse.decoding.backends.cuda_graph.modified_models import find_modification
from reverse.models import family_of

__all__ = ["Layer", "TextModel", "text_model", "unsupported"]

_TEXT_TYPES = ("llama", "qwen2", "qwen2_5_vl_text")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not depend on the length


@dataclass(frozen=True, slots=True)
class Layer:
    norm_in: torch.Tensor
    qkv: tuple[torch.Tensor, ...]
    qkv_bias: tuple[torch.Tensor, ...]
    out: torch.Tensor
    norm_mlp: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class TextModel:
    """A decoder of the Llama kind: pre-norm, rotary positions, grouped queries, gated MLP."""

    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: torch.Tensor
    eps: float
    heads: int
    kv_heads: int
    head_dim: int
    frequencies: torch.Tensor  # (head_dim / 2,) float32
    rope_scale: float

    @property
    def bytes(self) -> int:
        """Bytes a decode step must read: every layer and the head."""
        layer = [self.norm, self.head]
        for each in self.layers:
            layer += [each.norm_in, *each.qkv, *each.qkv_bias, each.out, each.norm_mlp]
            layer += [each.gate, each.up, each.down]
        return sum(t.numel() * t.element_size() for t in layer)

    def same_as(self, other: TextModel) -> bool:
        """Whether both refer to the same memory, so that a step captured for one is valid for the other."""
        names = [f.name for f in fields(self) if f.name != "frequencies"]  # a copy: told by its numbers
        ours, theirs = ([_place(getattr(text, name)) for name in names] for text in (self, other))
        return ours == theirs and torch.equal(self.frequencies, other.frequencies)


def _place(value: Any) -> Any:
    """Replace tensors by their addresses; numbers stay."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, Layer):
        return tuple(_place(getattr(value, f.name)) for f in fields(value))
    return tuple(map(_place, value)) if isinstance(value, tuple) else value


def unsupported(model: Any) -> str | None:
    """Return why this model cannot be captured, or None if it can."""
    text = model.config.get_text_config()
    if text.model_type not in _TEXT_TYPES:
        return f"the text model is {text.model_type!r}, known are {', '.join(_TEXT_TYPES)}"
    if getattr(text, "hidden_act", "silu") != "silu":
        return f"hidden_act={text.hidden_act!r}"
    if getattr(text, "use_sliding_window", False) and getattr(text, "sliding_window", None):
        return f"sliding_window={text.sliding_window}"
    language, head = _parts(model)
    kind = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        return f"rope_type={kind!r}"
    modification = find_modification(model)
    if modification is not None:
        return modification
    for name, module in language.named_modules():
        if name.endswith("_proj") and type(module) is not nn.Linear:
            return f"{name} is a {type(module).__name__}: merge adapters, load without quantisation"
        if name.endswith(("o_proj", "gate_proj", "up_proj", "down_proj")) and module.bias is not None:
            return f"{name} has a bias"
    if type(head) is not nn.Linear or head.bias is not None:
        return f"lm_head is a {type(head).__name__}" + (" with a bias" if type(head) is nn.Linear else "")
    if type(language.embed_tokens) is not nn.Embedding:
        return f"embed_tokens is a {type(language.embed_tokens).__name__}"
    devices = {parameter.device for parameter in [*language.parameters(), *head.parameters()]}
    if len(devices) > 1:
        return f"it is spread over {', '.join(sorted(map(str, devices)))}"
    dtypes = {parameter.dtype for parameter in [*language.parameters(), *head.parameters()]}
    if len(dtypes) > 1:
        return f"its weights have several dtypes: {', '.join(sorted(map(str, dtypes)))}"
    return None


def _parts(model: Any) -> tuple[Any, Any]:
    return model.get_submodule(family_of(model).language_model), model.get_output_embeddings()


def text_model(model: Any) -> TextModel:
    """Return the weights of a model for which `unsupported` is None."""
    config = model.config.get_text_config()
    language, head = _parts(model)
    layers = []
    for layer in language.layers:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = tuple(p.bias.detach() for p in projections if p.bias is not None)
        layers.append(
            Layer(
                layer.input_layernorm.weight.detach(),
                tuple(p.weight.detach() for p in projections),
                biases,
                attention.o_proj.weight.detach(),
                layer.post_attention_layernorm.weight.detach(),
                mlp.gate_proj.weight.detach(),
                mlp.up_proj.weight.detach(),
                mlp.down_proj.weight.detach(),
            )
        )
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = language.rotary_emb
    return TextModel(
        language.embed_tokens.weight.detach(),
        tuple(layers),
        language.norm.weight.detach(),
        head.weight.detach(),
        config.rms_norm_eps,
        heads,
        config.num_key_value_heads,
        width,
        rotary.inv_freq.detach().float(),
        float(rotary.attention_scaling),
    )
