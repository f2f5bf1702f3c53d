"""Choose the trained weights: all of the language model, or LoRA with the three tokens' rows and the
projector.

    model = select_trained(model, processor, Tuning(method="lora"))

Under LoRA everything is frozen but the low-rank matrices at every linear layer of the language model, the
rows of the three tokens in the embeddings *and* in the head, and the projector in full. (Known difference
from the released code, https://arxiv.org/abs/2504.13169: there the rows are frozen at random values.) The
head's rows of an untied model are trained only where they are named for it (peft, `trainable_token_indices`).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import RequestError
from reverse.models import family_of
from reverse.tokens import find_token_ids
from reverse.training.recipes.recipe import Tuning

__all__ = [
    "Tuning",
    "disable_lora_input_cast",
    "is_adapted",
    "make_lora_config",
    "quantization",
    "select_trained",
]


def select_trained(model: Any, processor: Any, tuning: Tuning, *, parallel: str = "none") -> Any:
    """Freeze and adapt `model` in place, and return the model to train, wrapped by peft under LoRA.

    Args:
        model: of transformers, with the three tokens.
        processor: of the model; it knows the tokens' rows.
        tuning: see `Tuning`.
        parallel: mode of several devices; ZeRO-3 needs a single dtype.

    Raises:
        ValueError: settings that exclude each other, or a vocabulary without the tokens.
    """
    check_tuning(tuning)
    family = family_of(model)
    if tuning.method == "full":
        model.requires_grad_(True)
        family.vision_tower(model).requires_grad_(tuning.vision)
        family.image_projector(model).requires_grad_(tuning.projector)
        return model
    from peft import get_peft_model

    from reverse.training.optim.token_rows import use_token_rows

    config = make_lora_config(model, processor, tuning)
    model.requires_grad_(False)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=parallel != "zero3")
    for parameter in adapted.parameters():
        # The matrices of LoRA come in float32, projector and rows in the base's dtype: in bfloat16 a
        # step of 2e-5 is lost in rounding.
        if parameter.requires_grad and parallel != "zero3":
            parameter.data = parameter.data.float()
    use_token_rows(adapted)
    return adapted


def make_lora_config(model: Any, processor: Any, tuning: Tuning) -> Any:
    """The `LoraConfig` of a model: every linear layer of its language model, and what `tuning` adds."""
    from peft import LoraConfig

    family = family_of(model)
    ids = list(find_token_ids(processor.tokenizer))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=_linears(model, family),
        modules_to_save=[family.projector] if tuning.projector else None,
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids} if tuning.tokens else None,
    )


def check_tuning(tuning: Tuning) -> None:
    """Raise ValueError for settings that exclude each other."""
    if tuning.method == "full" and tuning.quantize != "none":
        raise RequestError("tune.quantize=nf4 freezes what it quantizes: it needs tune.method=lora")
    if tuning.method == "lora" and tuning.vision:
        raise RequestError("tune.vision=true trains the tower in full: it needs tune.method=full")


def quantization(tuning: Tuning, model_path: str, dtype: torch.dtype) -> Any:
    """Return the `quantization_config` for loading a base, or None.

    Raises:
        ValueError: bitsandbytes or a CUDA device is missing.
    """
    if tuning.quantize == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RequestError(
            "tune.quantize is nf4 but bitsandbytes is not installed: pip install 'reverse-vlm[qlora]', or "
            "tune.quantize=none"
        )
    if not torch.cuda.is_available():
        raise RequestError("tune.quantize is nf4, which needs a CUDA device: take tune.quantize=none here")
    from transformers import BitsAndBytesConfig

    from reverse.models.checkpoints.loading import find_checkpoint

    _, family = find_checkpoint(model_path)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,  # a float: FSDP shards nothing else
        llm_int8_skip_modules=["lm_head", family.tower, family.projector],
    )


def is_adapted(model: Any) -> bool:
    """Whether peft wraps the model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


@contextmanager
def disable_lora_input_cast(model: Any) -> Iterator[None]:
    """Keep LoRA from casting its inputs to float32 in the context, because autocast casts them back."""
    # peft.helpers.disable_input_dtype_casting fails on layers without the switch, those of token rows.
    layers = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
    if not layers:
        raise IncompatibleLibraryError("peft", "no layer has the attribute cast_input_dtype_enabled")
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True


def _linears(model: Any, family: Any) -> str:
    """Return a pattern that matches exactly the linear layers of the decoder."""
    decoder = family.decoder(model)
    names = {
        name.rpartition(".")[2]
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Linear) or module.__class__.__name__ == "Linear4bit"
    }
    return rf"{re.escape(family.language_model)}\..*\.({'|'.join(sorted(names))})"
