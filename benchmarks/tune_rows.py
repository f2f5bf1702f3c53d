"""Search the shapes of the kernels that multiply one row by a matrix, for the GPU at hand.

    python benchmarks/tune_rows.py --out reverse/decoding/backends/cuda_graph/triton_kernels/row_shapes.json

Every matrix of the published sizes is multiplied with every shape in a captured chain over copies that do not
fit into the L2 cache. The best of these are tried in whole steps, where kernels overlap. What is kept there
stands under the GPU's name; other GPUs keep theirs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from backend_steps import Bench

from reverse.decoding.backends.cuda_graph.row_state import StepPlan
from reverse.decoding.backends.cuda_graph.triton_kernels import attention, kernels

# (outputs, inputs, kind): matrices of LLaVA-1.5-7B, Qwen2.5-VL-3B and Qwen2.5-VL-7B
MATRICES = {
    "llava7b": [(12288, 4096, "qkv"), (4096, 4096, "out"), (11008, 4096, "gated"), (4096, 11008, "out"),
                (32064, 4096, "head")],
    "qwen3b": [(2560, 2048, "qkv_bias"), (2048, 2048, "out"), (11008, 2048, "gated"), (2048, 11008, "out"),
               (151936, 2048, "head")],
    "qwen7b": [(4608, 3584, "qkv_bias"), (3584, 3584, "out"), (18944, 3584, "gated"), (3584, 18944, "out"),
               (152064, 3584, "head")],
}  # fmt: skip


def shapes_of(n: int, k: int, kind: str) -> list[tuple[int, int, int]]:
    """(outputs, inputs, warps) of a program that are worth a trial: 8 to 64 weights a thread at a time."""
    found = []
    for outputs, inputs, warps in itertools.product((1, 2, 4, 8), (256, 512, 1024, 2048, 4096), (1, 2, 4, 8)):
        weights = outputs * inputs // (32 * warps)
        if kind == "gated":
            weights *= 2
        if 8 <= weights <= 64 and inputs < 2 * k and n % outputs == 0:
            found.append((outputs, inputs, warps))
    return found


class Chain:
    """A matrix several times over, so that no copy is in the L2 cache when its turn comes."""

    def __init__(self, n: int, k: int, kind: str, copies: int | None = None):
        self.kind = kind
        pair = 2 if kind == "gated" else 1
        copies = copies or max(2, min(48, -(-400_000_000 // (pair * n * k * 2))))
        parts = {"qkv": 3, "qkv_bias": 3}.get(kind, pair)
        sizes = [n] * pair if kind in ("gated", "out", "head") else [n - 2 * (n // 6), n // 6, n // 6]
        if kind == "qkv":
            sizes = [n // 3] * 3
        if kind == "qkv_bias":
            sizes = [k, (n - k) // 2, (n - k) // 2]
        make = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        self.weights = [[make(size, k) for size in sizes] for _ in range(copies)]
        self.biases = [make(size) for size in sizes[:parts]]
        self.x, self.norm, self.residual = make(1, k), make(k), make(1, n)
        self.bytes = pair * n * k * 2

    def call(self, weights: list[torch.Tensor], shape: tuple[int, int, int] | None) -> None:
        if self.kind == "gated":
            kernels.gated(self.x, *weights, self.norm, 1e-6, shape=shape)
        elif self.kind == "out":
            kernels.linear(self.x, weights, residual=self.residual, shape=shape)
        else:
            biases = self.biases if self.kind == "qkv_bias" else ()
            is_head = self.kind == "head"
            kernels.linear(self.x, weights, biases, self.norm, 1e-6, f32=is_head, shape=shape)

    def microseconds(self, shape: tuple[int, int, int] | None, rounds: int = 3) -> float:
        """Median time of one product in a captured chain of them."""
        self.call(self.weights[0], shape)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for weights in self.weights:
                    self.call(weights, shape)
        taken = []
        for i in range(9):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i > 2:
                taken.append(start.elapsed_time(end))
        return statistics.median(taken) * 1e3 / (rounds * len(self.weights))


def kinds() -> list[tuple[int, int, str]]:
    return [each for matrices in MATRICES.values() for each in matrices]


def compile_share(index: int, of: int) -> None:
    """Compile every `of`-th kernel that will be tried, into Triton's cache on disk."""
    trials = sorted({(kind, shape) for n, k, kind in kinds() for shape in shapes_of(n, k, kind)})
    for kind, shape in trials[index::of]:  # the sizes are arguments that one kernel takes
        chain = Chain({"qkv": 96, "qkv_bias": 2048 + 32}.get(kind, 64), 2048, kind, 1)
        chain.call(chain.weights[0], shape)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(MATRICES), choices=list(MATRICES))
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--share", type=int, default=-1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.share >= 0:
        compile_share(given.share, given.workers)
        return
    command = [sys.executable, __file__, "--out", str(given.out), "--workers", str(given.workers), "--share"]
    workers = [subprocess.Popen([*command, str(i)]) for i in range(given.workers)]
    for worker in workers:
        worker.wait()
    known: dict[str, Any] = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {}
    device = torch.cuda.get_device_name()
    best: dict[str, Any] = dict(known.get(device, {}))
    torch.manual_seed(0)
    for model in given.models:
        with torch.no_grad():
            candidates = {matrix: fastest(matrix) for matrix in MATRICES[model]}
        best |= tune_step(model, candidates)
        known[device] = best
        given.out.write_text(json.dumps(known, indent=1) + "\n", "utf-8")


def fastest(matrix: tuple[int, int, str], keep: int = 9) -> list[tuple[int, int, int]]:
    """The shapes that multiply a matrix fastest on its own."""
    chain = Chain(*matrix)
    before = chain.microseconds(None)
    times = {shape: chain.microseconds(shape) for shape in shapes_of(*matrix)}
    order = sorted(times, key=lambda shape: times[shape])[:keep]
    table = ", ".join(f"{shape} {times[shape]:.1f}" for shape in order)
    rate = chain.bytes / times[order[0]] / 1e6
    print(f"{matrix}: {before:.1f} us -> {table}; {rate:.2f} TB/s", flush=True)
    return order


def tune_step(
    model: str, candidates: dict[tuple[int, int, str], list[tuple[int, int, int]]]
) -> dict[str, Any]:
    """Try the shapes in whole steps, where the kernels overlap, one matrix after the other."""
    bench = Bench(model, "cuda")
    bench.add(1)
    runner, plan = bench.backend.runner, StepPlan([1])
    assert runner is not None
    shapes = kernels.measured_shapes(torch.cuda.current_device())
    shapes.clear()

    def measure() -> float:
        runner.forget_graphs()
        return bench.raw(plan, 12) * 1e6

    least = measure()
    print(f"{model}: {least:.0f} us a step before", flush=True)
    for programs in (64, 256, 512):
        attention._PROGRAMS = programs
        print(f"{model}: {measure():.0f} us with {programs} programs of attention", flush=True)
    attention._PROGRAMS = 128
    for (n, k, kind), tried in candidates.items():
        key = f"{n}x{k}{' gated' if kind == 'gated' else ''}"
        for shape in tried:
            before = shapes.get(key)
            shapes[key] = list(shape)
            taken = measure()
            if taken < least * 0.999:
                least = taken
            elif before is None:
                del shapes[key]
            else:
                shapes[key] = before
        print(f"{model}: {least:.0f} us a step, {key} {shapes.get(key)}", flush=True)
    return dict(shapes)


if __name__ == "__main__":
    main()
