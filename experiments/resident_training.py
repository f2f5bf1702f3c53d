"""Training from packs, with pictures and rows on the device: for small models, which else wait for data.

    config = ResidentConfig(output="out/tags", diet="tags", seconds=90)
    manifest = train_resident(model, processor, slabs, config)

What `reverse.training.sft` does through transformers' Trainer, without what a step of a few milliseconds
spends most of its time on: preparing, sending and counting. The objective, the optimizer's settings and the
schedule are the same. Nothing is kept of a run that is stopped; a finished one is written beside its place
and renamed, with `training.json`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import numpy as np
import torch

from experiments.batch_shapes import Shape
from experiments.scene_packs import Rows, Slab, read_slab
from experiments.uniform_passes import UniformPass
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import read_json
from reverse.tokens import token_ids
from reverse.training.checkpoints.saving import versions
from reverse.training.data.labels import IGNORE
from reverse.training.optim.schedule import Schedule

__all__ = ["Pace", "ResidentConfig", "jittered", "train_resident"]

PATIENCE = 180.0  # seconds to wait for a slab


@dataclass
class ResidentConfig:
    """How one run trains."""

    output: str  # folder that the model is written to
    diet: str  # which rows of the packs
    seconds: float | None = None  # stop after these, with the learning rate at zero
    until: float | None = None  # in place of seconds: the moment of time.time() at which to stop
    steps: int | None = None  # stop after these; None: as many as the time allows
    batch: int = 256  # pictures a step
    lr: float = 1e-3
    weight_decay: float = 0.05
    beta2: float = 0.98
    warmup: float = 0.03
    clip: float = 1.0
    negative_share: float = 1.0  # of the rows with a false phrase are shown
    jitter: float = 0.0  # share of the pictures that are zoomed and turned a little, see `jittered`
    frozen_rows: bool = False  # the three tokens' rows stay as they are, as published LoRA recipes leave them
    save_dtype: str | None = None  # of the weights on disk; they are loaded as float32 all the same
    compile: bool = False  # torch.compile for batches of one shape: 2.3 times as fast after half a minute
    log_steps: int = 200
    seed: int = 0


@dataclass
class Pace:
    """What two trainings that must take the same number of steps agree on; see `train_resident`."""

    barrier: Any  # multiprocessing.Barrier of both
    stop: Any  # multiprocessing.Value, set by the leader
    leads: bool

    def stops(self, done: bool) -> bool:
        """Whether both stop before this step; every step asks once."""
        if self.leads and done:
            self.stop.value = 1
        self.barrier.wait(timeout=300)
        stopped = bool(self.stop.value)
        self.barrier.wait(timeout=300)
        return stopped


def train_resident(
    model: Any,
    processor: Any,
    slabs: Sequence[str | Path],
    config: ResidentConfig,
    *,
    notes: Mapping[str, Any] | None = None,
    pace: Pace | None = None,
    late: Callable[[Any], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train `model` in place on the slabs, in their order and again from the start, and write it.

    Args:
        model: float32, on its device.
        processor: of the model, saved beside it.
        slabs: paths; one that is not there yet is waited for.
        notes: kept in the manifest.
        pace: keeps step with another training; the leader's clock stops both.
        late: called with the model when all is compiled, before the first step: it may wait for weights and
            write them into the model's parameters.
        say: called with a line of progress.

    Returns:
        The manifest, as written to `training.json`.

    Raises:
        ValueError: no bound, or a loss that is not a number.
        TimeoutError: a slab did not come.
    """
    if not (config.seconds or config.until or config.steps):
        raise ValueError("neither seconds, until nor steps are given: a run needs an end")
    device = model.device
    model.train()
    torch.manual_seed(config.seed)
    # Of its own and on the host: a twin of the same seed sees the same pictures jittered the same way.
    shaken = np.random.default_rng([config.seed, 2])
    schedule = Schedule(config.steps or 10**9, config.seconds, config.warmup)
    optimizer = _optimizer(model, config)
    kept: list[tuple[Any, list[int], torch.Tensor]] = []
    passes: UniformPass | None = None
    shape: Shape | None = None

    def loss_of(pictures: torch.Tensor, warp: torch.Tensor | None, *batch: torch.Tensor) -> torch.Tensor:
        assert passes is not None
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            return passes.loss(passes.see(pictures, warp), *batch)

    compiled = torch.compile(loss_of, dynamic=False) if config.compile else loss_of
    uncompiled = 0
    losses: list[tuple[int, float]] = []
    queued: list[Any] = []  # ends of steps that the device may still be at
    rows_seen, step, began = 0, 0, None
    for pictures, rows, chosen in _batches(slabs, config, device):
        if passes is None:
            passes = UniformPass(model, processor, side=pictures.shape[1], first=rows.first, count=rows.count)
            if config.compile:
                shape = Shape.of(rows, config.batch, rows.first + rows.count + 1)
        batch = _assemble(rows, chosen, config, passes, device)
        warp = _to(jittered(shaken, len(chosen), config.jitter), device) if config.jitter else None
        shown = pictures[_to(chosen, device)]
        padded = None if shape is None else shape.pad(batch)
        if began is None:
            if padded is not None:  # compiled before the clock runs, or the rate would skip its warm-up
                compiled(shown, warp, *padded).backward()
                optimizer.zero_grad(set_to_none=True)
            if late is not None:
                late(model)
            kept = _tag_rows(model, processor) if config.frozen_rows else []
            began = time.monotonic()
            if config.until is not None:
                schedule.seconds = max(1.0, config.until - time.time())
        done = schedule.done(step) >= 1
        if pace.stops(done) if pace is not None else done:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(step)
        if padded is not None:
            loss = compiled(shown, warp, *padded)
        else:
            uncompiled += config.compile
            loss = loss_of(shown, warp, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for weight, ids, before in kept:
            weight.data[ids] = before
        if device.type == "cuda":
            _wait_asleep(queued)
            if config.compile and padded is None:  # it took twice the memory, and others share the device
                torch.cuda.empty_cache()
        rows_seen += len(batch[0])
        schedule.spent = time.monotonic() - began
        step += 1
        if step % config.log_steps == 0 or step == 1:
            losses.append((step, round(float(loss.detach()), 5)))
            say(
                f"{Path(config.output).name}: {schedule.done(step):4.0%}  step {step}  "
                f"{schedule.spent:6.1f} s  loss {losses[-1][1]:.4f}  {step / schedule.spent:.1f} steps/s"
            )
    final = float(loss.detach())
    if not math.isfinite(final):
        raise ValueError(f"the loss is {final} after {step} steps: lower lr, now {config.lr}")
    manifest = {
        **(notes or {}),
        "config": asdict(config),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "items": step * config.batch,
        "rows": rows_seen,
        "seconds": round(schedule.spent, 3),
        "steps_per_second": round(step / max(schedule.spent, 1e-9), 3),
        "uncompiled_steps": uncompiled if config.compile else step,
        "final_loss": round(final, 5),
        "losses": losses,
    }
    _write(model, processor, Path(config.output), manifest, config.save_dtype)
    return manifest


def _batches(
    slabs: Sequence[str | Path], config: ResidentConfig, device: torch.device
) -> Iterator[tuple[torch.Tensor, Rows, torch.Tensor]]:
    """(a slab's pictures on the device, its rows, which pictures make the next batch), without end."""
    held: Queue[Any] = Queue(maxsize=1)
    closed = False

    def fetch() -> None:
        try:
            turn = 0
            while not closed:
                path = Path(slabs[turn % len(slabs)])
                while not path.exists():
                    if closed:
                        return
                    time.sleep(0.05)
                slab = read_slab(path, [config.diet])
                held.put((turn, slab, _send(slab.pictures, device)))
                turn += 1
        except BaseException as error:  # handed over to whoever reads
            held.put(error)

    Thread(target=fetch, daemon=True).start()
    try:
        for number in count():
            try:
                # Patience is that of a training that waits, not of a thread that reads ahead for one.
                got = held.get(timeout=PATIENCE)
            except Empty:
                raise TimeoutError(
                    f"{slabs[number % len(slabs)]} did not come within {PATIENCE:g} s: did the renderer stop?"
                ) from None
            if isinstance(got, BaseException):
                raise got
            turn, slab, pictures = got
            if device.type == "cuda":
                pictures.record_stream(torch.cuda.current_stream(device))
            order = np.random.default_rng([config.seed, turn]).permutation(len(slab.pictures))
            rows = _without_some_negatives(slab, config, turn)
            for at in range(0, len(order) - config.batch + 1, config.batch):
                yield pictures, rows, torch.from_numpy(order[at : at + config.batch])
    finally:
        closed = True
        while not held.empty():
            held.get()


def _send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, on a stream of its own, so that training goes on meanwhile."""
    if device.type != "cuda":
        return tensor
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        sent = tensor.pin_memory().to(device, non_blocking=True)
    stream.synchronize()
    return sent


def _wait_asleep(queued: list[Any], most: int = 3) -> None:
    """Let the device be `most` steps behind: launching into a full queue keeps a processor busy waiting,
    and the processes that draw need it."""
    queued.append(torch.cuda.Event(blocking=True))
    queued[-1].record()
    if len(queued) > most:
        queued.pop(0).synchronize()


def _without_some_negatives(slab: Slab, config: ResidentConfig, turn: int) -> Rows:
    rows = slab.rows[config.diet]
    if config.negative_share >= 1:
        return rows
    drawn = np.random.default_rng([config.seed, turn, 1]).random(len(rows.ids))
    stay = (rows.negative == 0) | (drawn < config.negative_share)
    before = np.concatenate([[0], np.cumsum(stay)])
    return Rows(
        rows.ids[stay], rows.labels[stay], rows.lengths[stay], rows.negative[stay], rows.pictured[stay],
        before[rows.begins].astype(np.int32), rows.first, rows.count,
    )  # fmt: skip


def _assemble(
    rows: Rows, chosen: torch.Tensor, config: ResidentConfig, passes: UniformPass, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """(ids, which, at, targets) of `UniformPass.loss` for the chosen pictures."""
    begins, ends = rows.begins[:-1][chosen], rows.begins[1:][chosen]
    which = np.repeat(np.arange(len(chosen)), ends - begins)
    picked = np.concatenate([np.arange(b, e) for b, e in zip(begins, ends, strict=True)])
    which = np.where(rows.pictured[picked] > 0, which, -1)
    longest = max(int(rows.lengths[picked].max()), passes.first + passes.count + 1)
    ids = np.zeros((len(picked), longest), np.int16)
    width = min(longest, rows.ids.shape[1])
    ids[:, :width] = rows.ids[picked, :width]
    nexts = np.full((len(picked), longest), IGNORE, np.int16)
    nexts[:, : width - 1] = rows.labels[picked, 1:width]
    at = np.flatnonzero(nexts.ravel() != IGNORE)
    arrays = (ids, which.astype(np.int16), at.astype(np.int32), nexts.ravel()[at])
    return tuple(_to(torch.from_numpy(array), device).long() for array in arrays)


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device without waiting for it: a copy from pageable memory would wait for the steps before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def jittered(rng: np.random.Generator, count: int, share: float) -> torch.Tensor:
    """Where the points of pictures are taken from, (count, 2, 3) float32: some as they are.

    The others are zoomed by 0.8 to 1.15 and turned by up to 12 degrees about their middle: little enough
    that what is said about places stays true, and that no object's centre leaves the picture.
    """
    moved = rng.random(count) < share
    zoom = np.where(moved, np.exp(rng.uniform(np.log(0.8), np.log(1.15), count)), 1.0)
    angle = np.where(moved, np.radians(rng.uniform(-12, 12, count)), 0.0)
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    warp = np.zeros((count, 2, 3), np.float32)
    warp[:, 0, 0], warp[:, 0, 1], warp[:, 1, 0], warp[:, 1, 1] = cosine, -sine, sine, cosine
    return torch.from_numpy(warp)


def _tag_rows(model: Any, processor: Any) -> list[tuple[Any, list[int], torch.Tensor]]:
    """(weight, rows, what they hold) of the three tokens, in the input and in an output of its own."""
    ids = list(token_ids(processor.tokenizer))
    weights = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings().weight
    if output is not weights[0]:
        weights.append(output)
    return [(weight, ids, weight.data[ids].clone()) for weight in weights]


def _optimizer(model: Any, config: ResidentConfig) -> torch.optim.Optimizer:
    """AdamW as `sft` has it: weight decay for matrices only, embeddings left out."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = model.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=fused)


def _write(model: Any, processor: Any, output: Path, manifest: dict[str, Any], dtype: str | None) -> None:
    with output_lock(output):
        _write_folder(model, processor, output, manifest, dtype)


def _write_folder(
    model: Any, processor: Any, output: Path, manifest: dict[str, Any], dtype: str | None
) -> None:
    partial = output.with_name(output.name + ".partial")
    for leftover in (partial, output):
        shutil.rmtree(leftover, ignore_errors=True)
    if dtype is not None:
        model.to(getattr(torch, dtype))
    model.eval()
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    if dtype is not None:
        # It halves the file; computed in is what was trained in, or answers would depend on their batch.
        config = read_json(partial / "config.json")
        config["dtype"] = "float32"
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (partial / "training.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.rename(output)
