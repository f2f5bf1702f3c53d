"""What steps of the captured-graph backend cost on models of the published sizes: rows, branches, rewinds.

    python benchmarks/backend_steps.py --models llava7b qwen3b --out benchmarks/results

Random weights; `geometry.Script` imposes tokens and corrections after the true forward pass. Prints every
number and one JSON line; kept as `backend_steps_<device>.json`. Prompts hold one picture of 560x560.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geometry
import torch
from geometry import Script
from timing import Figures, copy_bandwidth, seconds, synchronize

from reverse.decoding.backends.cuda_graph.graph_backend import CudaGraphBackend
from reverse.decoding.backends.cuda_graph.row_state import CaptureConfig, RowState, StepPlan
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.cuda_graph.weights import text_model
from reverse.decoding.backends.protocol import Picture, Prompt, SegmentOutput, SegmentParams, StepOutput
from reverse.decoding.text.codec import TextCodec
from reverse.evaluation.runs.environment import describe_environment
from reverse.models import family_of, prepare_inputs
from reverse.tokens import find_token_ids

LENGTH, THRESHOLD, QUESTION = 60, 0.1, "Describe this image."
MOST_SEQUENCES = 64
HINT = list(range(70, 84))
AFTER_HINT = 5  # ids of the prompt that stand behind a hint
PHRASE = 6  # ids that a rejection takes back, tags included


class TimedBackend(CudaGraphBackend):
    """Knows when its first step began: what comes before is prefilling, what comes after is decoding."""

    began: float | None = None

    def step(self) -> list[StepOutput]:
        if self.began is None:
            synchronize()
            self.began = time.perf_counter()
        return super().step()


class Bench:
    """One model, one prompt with a picture, and the backend that decodes it."""

    def __init__(self, name: str, device: str):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.model, self.processor = geometry.build(name, device, dtype)
        self.device, self.family = device, family_of(self.model)
        self.tags = find_token_ids(self.processor.tokenizer)
        ends = self.model.generation_config.eos_token_id
        self.eos = ends[0] if isinstance(ends, list) else ends
        self.imposed = Script.room(21, 220, self.tags.un, device)
        self.codec = TextCodec(self.processor)
        self.backend = TimedBackend(
            self.model, max_sequences=MOST_SEQUENCES, tags=self.tags, hook=self.imposed.impose,
            open_runner=self._take, keep_runner=self._keep,
        )  # fmt: skip
        self.kept: GraphRunner | None = None
        picture = geometry.picture(0, 112 if device == "cpu" else 560)
        inputs = prepare_inputs(self.processor, [picture], [QUESTION], self.family)
        tensors = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in inputs.items()
            if key in ("pixel_values", "image_grid_thw")
        }
        self.ids = inputs["input_ids"][0].tolist()
        self.pictures = self.backend.encode([Picture(tensors)])
        self.bytes = text_model(self.model).bytes

    def _take(self) -> GraphRunner | None:
        runner, self.kept = self.kept, None
        return runner

    def _keep(self, runner: GraphRunner) -> None:
        self.kept = runner

    def script(self, rejected: int, length: int = LENGTH) -> Script:
        return geometry.script(self.processor, self.eos, length, rejected).to(self.device)

    def add(self, n: int) -> list[int]:
        prompt = Prompt(self.ids, self.pictures, len(self.ids) + 160)
        names: list[int] = []
        for first in range(0, n, 16):
            names += self.backend.add([prompt] * min(16, n - first))
        return names

    def params(self, length: int, position: int = 0, attempt: int = 0, **settings: Any) -> SegmentParams:
        eos = frozenset({self.eos})
        return SegmentParams(length, self.tags, eos, position=position, attempt=attempt, **settings)

    # ------------------------------------------------------------------ answers
    def answers(self, names: Sequence[int], script: Script, length: int, hints: bool = False) -> float:
        """Seconds in which sequences say the script side by side, rewinding where it is suspect."""
        self.imposed.load(script)
        said: dict[int, list[int]] = {name: [] for name in names}
        attempts = dict.fromkeys(names, 0)
        synchronize()
        began = time.perf_counter()
        for name in names:
            self.backend.start(name, self.params(length))
        while outputs := self.backend.step():
            for output in outputs:
                if output.segment is not None:
                    self._go_on(output.sequence, output.segment, said, attempts, length, hints)
        synchronize()
        return time.perf_counter() - began

    def _go_on(
        self, name: int, segment: SegmentOutput, said: dict, attempts: dict, length: int, hints: bool
    ) -> None:
        if segment.end != "phrase":
            return
        said[name] += segment.ids
        if segment.ps[-1] > THRESHOLD:
            del said[name][-PHRASE:]
            attempts[name] += 1
        prompt = self.ids
        if hints and attempts[name]:
            prompt = [*self.ids[:-AFTER_HINT], *HINT, 90 + attempts[name], *self.ids[-AFTER_HINT:]]
        self.backend.set_tokens(name, [*prompt, *said[name]])
        position = len(said[name])
        self.backend.start(name, self.params(length - position, position, attempts[name]))

    def decoding(self, script: Script, length: int = LENGTH, hints: bool = False, repeats: int = 5) -> float:
        """Median seconds of one sequence from the prefilled cache to the end of the answer."""
        taken = []
        (name,) = self.add(1)
        for _ in range(repeats + 2):
            self.backend.set_tokens(name, self.ids)
            taken.append(self.answers([name], script, length, hints))
        self.backend.release(name)
        return statistics.median(taken[2:])

    # ------------------------------------------------------------------ steps without a host
    def raw(self, plan: StepPlan, steps: int = 40) -> float:
        """Seconds a captured step takes when nothing waits for the host."""
        runner = self.backend.runner
        assert runner is not None
        config = CaptureConfig(self.tags, self.imposed.impose)
        at = len(self.ids) + 8
        rows = [*plan.plain, *(row for group in plan.groups for row in group)]
        states = {row: RowState(70, at, at, self.params(LENGTH)) for row in rows}

        def go() -> None:
            runner.write(states, {})
            for _ in range(steps):
                runner.launch(plan, config)

        with torch.no_grad():
            return seconds(go, 5, 2) / steps

    def profile(self, plan: StepPlan) -> dict[str, list[float]]:
        """Microseconds and calls of every kernel of a captured step, the longest first."""
        self.raw(plan, 4)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            self.raw(plan, 4)
        steps = 7 * 4
        found = {
            event.key[:60]: [event.device_time_total / steps, event.count / steps]
            for event in profiler.key_averages()
            if event.device_time_total
        }
        return dict(sorted(found.items(), key=lambda each: -each[1][0])[:16])

    def grouped(self, groups: int, size: int) -> StepPlan:
        rows = [list(range(1 + i * size, 1 + i * size + size)) for i in range(groups)]
        return StepPlan([], rows, [len(self.ids)] * groups, size)

    def same_bits(self, width: int) -> bool:
        """Whether ten steps of so many rows, taken back and repeated, say the same to the last bit."""
        runner = self.backend.runner
        assert runner is not None
        plan, config = StepPlan(list(range(1, width + 1))), CaptureConfig(self.tags)
        at = len(self.ids) + 8
        found = []
        with torch.no_grad():
            for _ in range(3):
                states = {row: RowState(70 + row, at, at, self.params(LENGTH)) for row in plan.plain}
                runner.write(states, {})
                found.append([runner.launch(plan, config).read() for _ in range(10)])
        return found[0] == found[1] == found[2]

    # ------------------------------------------------------------------ second turns
    def first_token(self, name: int) -> None:
        """Decode one token of a sequence."""
        self.backend.start(name, self.params(1))
        while self.backend.step():
            pass

    def second_turn(self, hint: Sequence[int]) -> tuple[float, float]:
        """Seconds to the first token of a second turn: on the kept answer, and from the start.

        `hint`: ids that stood in the first turn's prompt and are gone in the second. The picture's features
        are at hand in both.
        """
        script = self.script(0)
        self.imposed.load(script)
        answer = script.tokens[0, :-1].tolist()
        turn, _ = self.codec.encode_user_turn("Is there anything else in the picture?")
        head, tail = self.ids[:-AFTER_HINT], self.ids[-AFTER_HINT:]
        first = [*head, *hint, *tail, *answer]
        conversation = [*self.ids, *answer, *turn]
        room = len(conversation) + len(hint) + 16
        (name,) = self.backend.add([Prompt(self.ids, self.pictures, room)])
        kept, afresh = [], []
        for _ in range(7):
            self.backend.set_tokens(name, first)
            self.first_token(name)
            synchronize()
            began = time.perf_counter()
            self.backend.set_tokens(name, conversation)
            self.first_token(name)
            kept.append(time.perf_counter() - began)
            began = time.perf_counter()
            (other,) = self.backend.add([Prompt(conversation, self.pictures, room)])
            self.first_token(other)
            afresh.append(time.perf_counter() - began)
            self.backend.release(other)
        self.backend.release(name)
        return statistics.median(kept[2:]), statistics.median(afresh[2:])


def measure(name: str, device: str, copy: float, quick: bool) -> Figures:
    bench, figures = Bench(name, device), Figures(name)
    figures.update(weights_gb=bench.bytes / 1e9, prompt=len(bench.ids))
    on = bench.decoding(bench.script(0, 220), 220) / 220
    figures.add("on_step_ms", on * 1e3)
    figures.add("bandwidth_share", bench.bytes / on / copy)
    clean, five = bench.script(0), bench.script(5)
    for key, hints in (("rewind_steps", False), ("rewind_hint_steps", True)):
        more = bench.decoding(five, hints=hints) - bench.decoding(clean, hints=hints)
        figures.add(key, (more / 5 - PHRASE * on) / on)
    names = bench.add(1)
    one = bench.raw(StepPlan([1]))
    figures.add("raw_step_ms", one * 1e3)
    figures.add("raw_share", bench.bytes / one / copy)
    if device != "cpu":
        figures.add("profile", bench.profile(StepPlan([1])))
    bench.backend.release(names[0])
    if not quick:
        measure_widths(bench, figures)
        measure_branches(bench, figures)
        measure_second_turns(bench, figures)
    if torch.cuda.is_available():
        figures.add("peak_gb", torch.cuda.max_memory_allocated() / 1e9)
    return figures


def measure_widths(bench: Bench, figures: Figures) -> None:
    """Steps of rows that go alone, and of branches that read a prefix together, without a host."""
    names = bench.add(64)
    for rows in (1, 4, 8, 16, 32, 64):
        figures.add(f"raw_rows{rows}_ms", bench.raw(StepPlan(list(range(1, rows + 1)))) * 1e3)
    for groups, size in ((1, 4), (4, 4), (1, 16), (16, 4), (4, 16)):
        figures.add(f"raw_{groups}x{size}_ms", bench.raw(bench.grouped(groups, size)) * 1e3)
    for each in names:
        bench.backend.release(each)
    one = figures["raw_rows1_ms"]
    figures.add("candidates4_over_1", figures["raw_1x4_ms"] / one)
    figures.add("candidates16_over_1", figures["raw_1x16_ms"] / one)
    figures.add("raw_branches64_over_rows64", figures["raw_16x4_ms"] / figures["raw_rows64_ms"])


def measure_branches(bench: Bench, figures: Figures) -> None:
    """Sixteen requests of four branches each beside 64 requests, decoded step by step."""
    clean = bench.script(0)
    names = bench.add(64)

    def side_by_side(held: list[int]) -> float:
        taken = []
        for _ in range(4):
            for each in held:
                bench.backend.set_tokens(each, bench.ids)
            taken.append(bench.answers(held, clean, LENGTH))
        return statistics.median(taken[1:]) / LENGTH

    rows64 = side_by_side(names)
    figures.add("rows64_step_ms", rows64 * 1e3)
    for each in names[16:]:
        bench.backend.release(each)
    synchronize()
    before = time.perf_counter()
    branches = [branch for each in names[:16] for branch in bench.backend.split(each, 3)]
    synchronize()
    figures.add("split_48_ms", (time.perf_counter() - before) * 1e3)
    branches64 = side_by_side([*names[:16], *branches])
    figures.add("branches64_step_ms", branches64 * 1e3)
    figures.add("branches64_over_rows64", branches64 / rows64)
    for each in (*names[:16], *branches):
        bench.backend.release(each)


def measure_second_turns(bench: Bench, figures: Figures) -> None:
    """A second turn of the user on a kept answer beside the same conversation prefilled from its start."""
    for key, hint in (("second_turn", []), ("second_turn_hint_removed", HINT)):
        kept, afresh = bench.second_turn(hint)
        figures.add(f"{key}_ms", kept * 1e3)
        figures.add(f"{key}_prefill_ms", afresh * 1e3)
        figures.add(f"{key}_over_prefill", kept / afresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [*geometry.NAMES, "tiny"]
    parser.add_argument("--models", nargs="*", default=["llava7b", "qwen3b"], choices=names)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="one sequence only")
    given = parser.parse_args()
    copy = copy_bandwidth(given.device) if given.device != "cpu" else 1e10
    print(f"copy bandwidth {copy / 1e12:.2f} TB/s", flush=True)
    report: dict[str, Any] = describe_environment(given.device) | {
        "command": f"python benchmarks/backend_steps.py --models {' '.join(given.models)}",
        "copy_bandwidth": copy,
        "models": {},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    slug = report["device"].lower().replace(" ", "_").replace(",", "")
    for name in given.models:
        report["models"][name] = measure(name, given.device, copy, given.quick)
        (given.out / f"backend_steps_{slug}.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
