"""Train on pools of rows that stand on the device: every step takes so many random pictures of each group.

    group = PoolGroup([PoolPart(solve, rows=2), PoolPart(judge, rows=3, weight=4.0)], pictures=44)
    train_pools(passes, [group], PoolConfig("out/one", steps=5000), features=features)

A step is one batch a group; each group has one row length, and the losses of groups count alike. The rows of
a picture share what the model reads first, system prompt and picture (`experiments.shared_prefix`). The rows
of step k depend on the seed and k alone, so a run that is stopped goes on from its last checkpoint (weights
and moments as safetensors, replaced at once) and sees what it would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.reasoning.reasoning_rows import RowPool
from experiments.shared_prefix import shared_prefix_loss
from experiments.uniform_passes import UniformPass
from reverse.errors import DataError
from reverse.training.data.labels import IGNORE
from reverse.training.optim.schedule import Schedule

__all__ = ["PoolConfig", "PoolGroup", "PoolPart", "train_pools"]

SHOWN_STEPS = 200  # between lines of progress


@dataclass(frozen=True)
class PoolPart:
    """A pool, how many of its rows a picture gives in a step, and the weight of their targets.

    A picture with fewer rows gives all that it has.
    """

    pool: RowPool
    rows: int
    weight: float = 1.0


@dataclass(frozen=True)
class PoolGroup:
    """Pools whose rows make one batch, about so many pictures that the first pool has rows of."""

    parts: Sequence[PoolPart]
    pictures: int


@dataclass(frozen=True)
class PoolConfig:
    """How one run trains."""

    checkpoint: str  # file of the state of a run that is not finished
    steps: int
    lr: float = 1e-3
    weight_decay: float = 0.05
    beta2: float = 0.98
    warmup: float = 0.03
    clip: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 0  # steps between checkpoints; 0: none
    compile: bool = False


class _Group:
    """A group of pools on the device, with rows of one length."""

    def __init__(self, group: PoolGroup, end: int, device: torch.device):
        parts = [part for part in group.parts if part.rows and len(part.pool)]
        if not parts:
            raise DataError("a group of pools holds no rows: sample more questions")
        self.count, self.rows = group.pictures, sum(part.rows for part in parts)
        length = max(part.pool.ids.shape[1] for part in parts)
        length = -(-length // 16) * 16
        self.parts = [_HeldPart(part, length, end, device) for part in parts]
        self.pictures = torch.from_numpy(np.unique(parts[0].pool.pictures)).to(device)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids and labels, int64 (pictures * rows, length), weights of the rows, and the pictures."""
        device = generator.device
        chosen = torch.randint(len(self.pictures), (self.count,), generator=generator, device=device)
        pictures = self.pictures[chosen].long()
        found = [part.draw(pictures, generator) for part in self.parts]
        ids, labels, weights = (
            torch.cat(list(each), dim=1).flatten(0, 1) for each in zip(*found, strict=True)
        )
        return ids.long(), labels.long(), weights, pictures


class _HeldPart:
    """One pool on the device, its rows sorted by picture."""

    def __init__(self, part: PoolPart, length: int, end: int, device: torch.device):
        order = np.argsort(part.pool.pictures, kind="stable")
        ids, labels = part.pool.ids[order], part.pool.labels[order]
        if (ids[:, :end] != ids[:1, :end]).any() or (labels[:, : end + 1] != IGNORE).any():
            raise DataError(
                "rows do not begin alike up to the end of their picture, or a target stands there"
            )
        self.ids, self.labels = (
            _to_device(ids, length, 0, device),
            _to_device(labels, length, IGNORE, device),
        )
        counts = np.bincount(part.pool.pictures)
        self.counts = torch.from_numpy(counts).to(device)
        self.starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)
        self.each = torch.arange(part.rows, device=device)
        self.weight = part.weight

    def draw(self, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """ids and labels, (pictures, rows, length), and weights, (pictures, rows): 0 for a row too many."""
        known = pictures < len(self.counts)
        at = pictures.clamp(max=len(self.counts) - 1)
        counts = self.counts[at] * known
        chance = torch.rand(len(pictures), generator=generator, device=generator.device)
        first = (chance * counts).long()
        turned = (first[:, None] + self.each) % counts.clamp(min=1)[:, None]
        rows = (self.starts[at][:, None] + turned).clamp(max=len(self.ids) - 1)
        weights = self.weight * (self.each < counts[:, None])
        return self.ids[rows], self.labels[rows], weights


def _to_device(array: Any, length: int, padding: int, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=padding).to(device)


def train_pools(
    passes: UniformPass,
    groups: Sequence[PoolGroup],
    config: PoolConfig,
    *,
    features: Tensor | None = None,
    pictures: Tensor | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train the model of `passes` in place.

    Args:
        groups: of pools; see the module's docstring.
        features: of all pictures, (pictures, count, hidden): the tower is frozen.
        pictures: uint8 (pictures, side, side, 3), in the place of features: the tower is trained, too.
        say: called with a line of progress.

    Returns:
        What the run did, plain values. Raises DataError for a loss that is not finite.
    """
    model, device = passes.model, passes.scale.device
    source = features if features is not None else pictures
    assert source is not None, "features or pictures are needed"
    held = [_Group(group, passes.first + passes.count, device) for group in groups]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _make_optimizer(trained, config)
    schedule = Schedule(config.steps, None, config.warmup)
    first = _load_state(Path(config.checkpoint), config, trained, optimizer)

    def loss_of(shown: Tensor, ids: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            seen = shown if features is not None else passes.see(shown)
            rows = len(ids) // len(shown)
            return shared_prefix_loss(passes, seen, ids, labels, weights, rows=rows)

    step_loss = torch.compile(loss_of, dynamic=False) if config.compile else loss_of
    model.train()
    generator = torch.Generator(device)
    began, losses, total = time.monotonic(), [], torch.tensor(math.nan)
    for step in range(first, config.steps):
        generator.manual_seed((config.seed << 32) + step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(step)
        total = torch.zeros((), device=device)
        for group_rows in held:
            ids, labels, weights, chosen = group_rows.draw(generator)
            loss = step_loss(source[chosen], ids, labels, weights) / len(held)
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % SHOWN_STEPS == 0 or step in (0, config.steps - 1):
            losses.append((step + 1, round(float(total), 5)))
            rate = (step + 1 - first) / (time.monotonic() - began)
            say(f"step {step + 1}/{config.steps}  loss {losses[-1][1]:.4f}  {rate:.1f} steps/s")
            if not math.isfinite(losses[-1][1]):
                raise DataError(
                    f"the loss is {losses[-1][1]} after {step + 1} steps: lower lr, now {config.lr}"
                )
        if config.checkpoint_steps and (step + 1) % config.checkpoint_steps == 0 and step + 1 < config.steps:
            _save_state(Path(config.checkpoint), config, step + 1, trained, optimizer)
    model.eval()
    Path(config.checkpoint).unlink(missing_ok=True)
    return {"steps": config.steps, "seconds": round(time.monotonic() - began, 1), "losses": losses}


def _make_optimizer(trained: Sequence[Any], config: PoolConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = trained[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=fused)


def _save_state(
    path: Path, config: PoolConfig, step: int, trained: Sequence[Any], optimizer: torch.optim.AdamW
) -> None:
    tensors = {}
    for number, parameter in enumerate(trained):
        tensors[f"{number}.weight"] = parameter.detach()
        state = optimizer.state[parameter]
        if state:  # what no loss reaches has none
            tensors |= {f"{number}.first": state["exp_avg"], f"{number}.second": state["exp_avg_sq"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file(tensors, partial, metadata={"step": str(step), "config": json.dumps(_key(config))})
    partial.replace(path)


def _load_state(path: Path, config: PoolConfig, trained: Sequence[Any], optimizer: torch.optim.AdamW) -> int:
    """Read the state of a run that was stopped; the step that comes next, 0 without one of this config."""
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if json.loads(metadata["config"]) != _key(config):
            return 0
        step = int(metadata["step"])
        for number, parameter in enumerate(trained):
            parameter.data.copy_(file.get_tensor(f"{number}.weight"))
            if f"{number}.first" not in file.keys():  # noqa: SIM118
                continue
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device if parameter.is_cuda else None),
                "exp_avg": file.get_tensor(f"{number}.first").to(parameter.device),
                "exp_avg_sq": file.get_tensor(f"{number}.second").to(parameter.device),
            }
    return step


def _key(config: PoolConfig) -> dict[str, Any]:
    left_out = ("checkpoint", "checkpoint_steps", "compile")
    return {name: value for name, value in asdict(config).items() if name not in left_out}
