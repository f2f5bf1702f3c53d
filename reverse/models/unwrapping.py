"""Find the transformers model inside its wrappers, and the device of its inputs.

model = unwrap_model(peft_model)             # also torch.compile'd and DistributedDataParallel models
ids = ids.to(input_device(model))            # also if accelerate keeps the weights elsewhere
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from reverse.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["check_adapter_hooks", "check_wrappers", "input_device", "unwrap_model"]

_PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
# peft's tuners whose own `forward` does not change the logits: this one adds to the loss.
_SAME_LOGITS = ("AdaLoraModel",)
# Hooks that peft registers during one call, and the option that asks for each.
_ADAPTER_HOOKS = {
    "_adapter_names_pre_forward_hook": "adapter_names",
    "_alora_offsets_pre_forward_hook": "alora_invocation_tokens",
}


def unwrap_model(model: Any) -> Any:
    """Return the model inside `torch.compile`, peft, data parallelism or DeepSpeed; `model` if not wrapped.

    `check_wrappers` refuses wrappers that change the answers of the model inside.
    """
    while (inner := _unwrap_once(model)) is not model:
        model = inner
    return model


def _unwrap_once(model: Any) -> Any:
    if "_orig_mod" in getattr(model, "_modules", ()):  # torch.compile(model)
        return model._modules["_orig_mod"]
    if type(model).__name__ in _PARALLEL:
        return model.module
    peft = sys.modules.get("peft")  # if peft wrapped the model, it is imported already
    if peft is None:
        return model
    if isinstance(model, peft.PeftModel):
        return model.get_base_model()
    if isinstance(model, peft.PeftMixedModel):
        return model.base_model.model
    return model.model if isinstance(model, peft.tuners.tuners_utils.BaseTuner) else model


def check_wrappers(model: Any) -> None:
    """Raise CheckpointError for a wrapper whose effect is not in the inner model, which decoding uses alone.

    Adapters inside of the inner model's layers (LoRA and similar) are allowed: they stay active.
    """
    while (inner := _unwrap_once(model)) is not model:
        if type(model).__name__ == "FullyShardedDataParallel":
            raise CheckpointError(
                "model is a FullyShardedDataParallel, whose weights are in pieces on several processes: "
                "gather them, `with FullyShardedDataParallel.summon_full_params(model): "
                "generate(model.module, ...)`"
            )
        if "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel):
            _check_adapters(model)
        model = inner


def _check_adapters(model: Any) -> None:
    """Raise CheckpointError for a PeftModel that acts outside the layers: virtual tokens, routers, activation
    by a text.
    """
    if getattr(model, "_adapters_disabled", False):
        return
    config = model.active_peft_config
    tuner = type(model.base_model)
    own = sys.modules["peft"].tuners.tuners_utils.BaseTuner
    why = None
    if config.is_prompt_learning:
        why = "puts virtual tokens before the prompt"
    elif issubclass(tuner, own) and tuner.forward is not own.forward and tuner.__name__ not in _SAME_LOGITS:
        why = "has a forward of its own"
    elif any(
        getattr(model.peft_config.get(name), "alora_invocation_tokens", None)
        for name in _active_adapters(model)
    ):
        why = "is switched on by tokens of the prompt (alora_invocation_tokens)"
    if why is not None:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise CheckpointError(
            f"the active adapter {model.active_adapter!r} is of type {kind} and {why}, which decoding that "
            "goes back cannot follow: use an adapter inside of the layers, such as LoRA, or decode with the "
            "base model, `with model.disable_adapter(): ...`"
        )


def _active_adapters(model: Any) -> list[str]:
    active = getattr(model.base_model, "active_adapters", None) or model.active_adapter
    return [active] if isinstance(active, str) else list(active)


def check_adapter_hooks(model: Any) -> None:
    """Raise CheckpointError for hooks of `PeftModel.generate()` that give each row of a batch an adapter.

    Rows come, go and change their places here, so an adapter would act on other rows than its own. `model` is
    the inner model.
    """
    if "peft" not in sys.modules:
        return
    outer = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
    if outer is not None and isinstance(outer, sys.modules["peft"].PeftModel):
        _check_adapters(outer)
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            option = _ADAPTER_HOOKS.get(getattr(getattr(hook, "func", hook), "__name__", ""))
            if option is not None:
                raise CheckpointError(
                    f"{option} gives the rows of a batch different adapters (at {name}), and decoding that "
                    "goes back changes their order: call once for each, after `model.set_adapter(name)`"
                )


def input_device(model: Any) -> torch.device:
    """Return the device for token ids, masks and pictures: where the inner model's embeddings are computed.

    Weights that accelerate offloads are on the meta device until a layer runs; its hook knows the device.
    """
    import torch

    for module in (*model.get_input_embeddings().modules(), model):
        parameter = next(module.parameters(recurse=False), None)
        if parameter is not None and parameter.device.type != "meta":
            return parameter.device
        device = _execution_device(getattr(module, "_hf_hook", None))
        if device is not None:
            return device
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def _execution_device(hook: Any) -> torch.device | None:
    """Return the device of an accelerate hook, or of the first hook of a SequentialHook that has one."""
    import torch

    for each in getattr(hook, "hooks", (hook,)):
        device = getattr(each, "execution_device", None)
        if device is not None:
            device = torch.device(device)
            if device.type != "meta":
                return device
    return None
