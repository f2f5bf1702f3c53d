"""Training from packs, with pictures and rows on the device: for small models, which else wait for data.

    config = ResidentConfig(output="out/tags", rows="tags", seconds=90)
    manifest = train_resident(model, processor, shards, config)

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
from experiments.scene_packs import Rows, Shard, read_shard
from experiments.uniform_passes import UniformPass
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import read_json
from reverse.tokens import find_token_ids
from reverse.training.checkpoints.saving import versions
from reverse.training.data.labels import IGNORE
from reverse.training.optim.schedule import Schedule

__all__ = ["ResidentConfig", "StepBarrier", "jittered", "save_rounded", "train_resident"]

PATIENCE = 180.0  # seconds to wait for a shard


@dataclass
class ResidentConfig:
    """How one run trains."""

    output: str  # folder that the model is written to
    rows: str  # name of the rows in the shards
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
class StepBarrier:
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
    shards: Sequence[str | Path],
    config: ResidentConfig,
    *,
    notes: Mapping[str, Any] | None = None,
    barrier: StepBarrier | None = None,
    late: Callable[[Any], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train `model` in place on the shards, in their order and again from the start, and write it.

    Args:
        model: float32, on its device.
        processor: of the model, saved beside it.
        shards: paths; one that is not there yet is waited for.
        notes: kept in the manifest.
        barrier: keeps step with another training; the leader's clock stops both.
        late: called with the model when all is compiled, before the first step: it may wait for weights and
            write them into the model's parameters.
        say: called with a line of progress.

    Returns:
        The manifest, as written to `training.json`.

    Raises:
        ValueError: no bound, or a loss that is not a number.
        TimeoutError: a shard did not come.
    """
    if not (config.seconds or config.until or config.steps):
        raise ValueError("neither seconds, until nor steps are given: a run needs an end")
    run = _Run(model, processor, config)
    for pictures, rows, chosen in _batches(shards, config, model.device):
        batch = run.assemble(pictures, rows, chosen)
        if run.began is None:
            run.compile(batch)
            if late is not None:
                late(model)
            run.start()
        done = run.schedule.done(run.step) >= 1
        if barrier.stops(done) if barrier is not None else done:
            break
        run.train_step(batch)
        if run.step % config.log_steps == 0 or run.step == 1:
            say(run.log())
    manifest = {**(notes or {}), **run.make_manifest()}
    _write(model, processor, Path(config.output), manifest, config.save_dtype)
    return manifest


@dataclass
class _Batch:
    """A batch on the device: pictures, how they are jittered, and the rows as they are and padded."""

    pictures: torch.Tensor
    warp: torch.Tensor | None
    rows: tuple[torch.Tensor, ...]
    padded: tuple[torch.Tensor, ...] | None  # None: not compiled, or too large for the compiled step


class _Run:
    """The state of one training: optimizer, schedule, the compiled step and what is counted."""

    def __init__(self, model: Any, processor: Any, config: ResidentConfig):
        self.model, self.processor, self.config = model, processor, config
        self.device = model.device
        model.train()
        torch.manual_seed(config.seed)
        # Of its own and on the host: a twin of the same seed sees the same pictures jittered the same way.
        self.rng = np.random.default_rng([config.seed, 2])
        self.schedule = Schedule(config.steps or 10**9, config.seconds, config.warmup)
        self.optimizer = _optimizer(model, config)
        self.compiled = torch.compile(self.loss_of, dynamic=False) if config.compile else self.loss_of
        self.passes: UniformPass | None = None
        self.shape: Shape | None = None
        self.kept: list[tuple[Any, list[int], torch.Tensor]] = []
        self.queued: list[Any] = []  # ends of steps that the device may still be at
        self.losses: list[tuple[int, float]] = []
        self.loss = torch.tensor(float("nan"))
        self.began: float | None = None
        self.step = self.rows_seen = self.uncompiled = 0

    def loss_of(self, pictures: torch.Tensor, warp: torch.Tensor | None, *rows: torch.Tensor) -> torch.Tensor:
        """Mean loss of a batch."""
        assert self.passes is not None
        with torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext():
            return self.passes.loss(self.passes.see(pictures, warp), *rows)

    def assemble(self, pictures: torch.Tensor, rows: Rows, chosen: torch.Tensor) -> _Batch:
        """The batch of the chosen pictures of a shard."""
        config = self.config
        if self.passes is None:
            side = pictures.shape[1]
            self.passes = UniformPass(
                self.model, self.processor, side=side, first=rows.first, count=rows.count
            )
            if config.compile:
                self.shape = Shape.of(rows, config.batch, rows.first + rows.count + 1)
        batch = _assemble(rows, chosen, config, self.passes, self.device)
        warp = _to(jittered(self.rng, len(chosen), config.jitter), self.device) if config.jitter else None
        padded = None if self.shape is None else self.shape.pad(batch)
        return _Batch(pictures[_to(chosen, self.device)], warp, batch, padded)

    def compile(self, batch: _Batch) -> None:
        """Compile the step before the clock runs: else the rate would skip its warm-up."""
        if batch.padded is not None:
            self.compiled(batch.pictures, batch.warp, *batch.padded).backward()
            self.optimizer.zero_grad(set_to_none=True)

    def start(self) -> None:
        """Start the clock."""
        self.kept = _tag_rows(self.model, self.processor) if self.config.frozen_rows else []
        self.began = time.monotonic()
        if self.config.until is not None:
            self.schedule.seconds = max(1.0, self.config.until - time.time())

    def train_step(self, batch: _Batch) -> None:
        """One optimizer step."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * self.schedule(self.step)
        if batch.padded is not None:
            self.loss = self.compiled(batch.pictures, batch.warp, *batch.padded)
        else:
            self.uncompiled += config.compile
            self.loss = self.loss_of(batch.pictures, batch.warp, *batch.rows)
        self.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for weight, ids, before in self.kept:
            weight.data[ids] = before
        if self.device.type == "cuda":
            _wait_asleep(self.queued)
            if config.compile and batch.padded is None:  # it took twice the memory; others share the device
                torch.cuda.empty_cache()
        self.rows_seen += len(batch.rows[0])
        assert self.began is not None
        self.schedule.spent = time.monotonic() - self.began
        self.step += 1

    def log(self) -> str:
        """Record the loss; a line of progress."""
        self.losses.append((self.step, round(float(self.loss.detach()), 5)))
        done, spent = self.schedule.done(self.step), self.schedule.spent
        return (
            f"{Path(self.config.output).name}: {done:4.0%}  step {self.step}  {spent:6.1f} s  "
            f"loss {self.losses[-1][1]:.4f}  {self.step / spent:.1f} steps/s"
        )

    def make_manifest(self) -> dict[str, Any]:
        """What the run did. Raises ValueError for a loss that is not finite."""
        final = float(self.loss.detach())
        if not math.isfinite(final):
            raise ValueError(f"the loss is {final} after {self.step} steps: lower lr, now {self.config.lr}")
        return {
            "config": asdict(self.config),
            "versions": versions(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps": self.step,
            "items": self.step * self.config.batch,
            "rows": self.rows_seen,
            "seconds": round(self.schedule.spent, 3),
            "steps_per_second": round(self.step / max(self.schedule.spent, 1e-9), 3),
            "uncompiled_steps": self.uncompiled if self.config.compile else self.step,
            "final_loss": round(final, 5),
            "losses": self.losses,
        }


def _batches(
    shards: Sequence[str | Path], config: ResidentConfig, device: torch.device
) -> Iterator[tuple[torch.Tensor, Rows, torch.Tensor]]:
    """(a shard's pictures on the device, its rows, which pictures make the next batch), without end."""
    held: Queue[Any] = Queue(maxsize=1)
    closed = False

    def fetch() -> None:
        try:
            turn = 0
            while not closed:
                path = Path(shards[turn % len(shards)])
                while not path.exists():
                    if closed:
                        return
                    time.sleep(0.05)
                shard = read_shard(path, [config.rows])
                held.put((turn, shard, _send(shard.pictures, device)))
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
                late_shard = shards[number % len(shards)]
                raise TimeoutError(
                    f"{late_shard} did not come within {PATIENCE:g} s: did the renderer stop?"
                ) from None
            if isinstance(got, BaseException):
                raise got
            turn, shard, pictures = got
            if device.type == "cuda":
                pictures.record_stream(torch.cuda.current_stream(device))
            order = np.random.default_rng([config.seed, turn]).permutation(len(shard.pictures))
            rows = _without_some_negatives(shard, config, turn)
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


def _without_some_negatives(shard: Shard, config: ResidentConfig, turn: int) -> Rows:
    rows = shard.rows[config.rows]
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
    ids = list(find_token_ids(processor.tokenizer))
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


def save_rounded(model: Any, processor: Any, folder: Path, dtype: str | None) -> None:
    """Write a float32 model whose weights are rounded to `dtype`, which halves the file, and its processor.

    It is read as float32 all the same: it computes in what it was trained in, or answers would depend on
    their batch.
    """
    if dtype is not None:
        model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if dtype is not None:
        config = read_json(folder / "config.json") | {"dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write(model: Any, processor: Any, output: Path, manifest: dict[str, Any], dtype: str | None) -> None:
    with output_lock(output):
        _write_folder(model, processor, output, manifest, dtype)


def _write_folder(
    model: Any, processor: Any, output: Path, manifest: dict[str, Any], dtype: str | None
) -> None:
    partial = output.with_name(output.name + ".partial")
    for leftover in (partial, output):
        shutil.rmtree(leftover, ignore_errors=True)
    model.eval()
    save_rounded(model, processor, partial, dtype)
    (partial / "training.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.rename(output)
