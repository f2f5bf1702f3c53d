"""What decoding costs: transformers, the naive way of correcting, and ours, on models of the published sizes.

    python benchmarks/decode.py --models llava7b qwen3b --out benchmarks/results

Random weights; `geometry.Script` imposes the same tokens and corrections on every contender after its true
forward pass. Prints every figure and one JSON line; kept as `decode_<device>.json`. Steps without a host,
branches and second turns are measured as in `backend_steps.py`, which knows the backend alone.
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
from backend_steps import (
    LENGTH,
    MOST_SEQUENCES,
    QUESTION,
    THRESHOLD,
    Bench,
    measure_branches,
    measure_second_turns,
)
from geometry import Script
from timing import Figures, copy_bandwidth, seconds, synchronize
from transformers import LogitsProcessor, LogitsProcessorList

from reverse.decoding.asks import Node, PictureRef
from reverse.decoding.backends.cuda_graph.row_state import StepPlan
from reverse.decoding.backends.protocol import Picture
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.plain_policy import PlainPolicy
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.decoding.result import Result
from reverse.decoding.scheduling.branch import AnswerRules, Branch
from reverse.decoding.scheduling.scheduler import Scheduler
from reverse.decoding.text.hints import HintWriter
from reverse.decoding.verifier import Verifier
from reverse.evaluation.runs.environment import describe_environment
from reverse.models import prepare_inputs

SHORT = 12  # tokens of the shorter answer from which the time of a step is told
LONG = 220


class Impose(LogitsProcessor):
    """The script for `generate()`, which shows ids and not positions."""

    def __init__(self, script: Script, prompt: int, attempt: int = 0):
        self.script, self.prompt, self.attempt = script, prompt, attempt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        position = torch.full((len(scores),), input_ids.shape[1] - self.prompt, device=scores.device)
        self.script.impose(scores, position, torch.full_like(position, self.attempt))
        return scores


class Contenders:
    """One model, prompts with a picture each, and everyone who decodes them."""

    def __init__(self, bench: Bench):
        self.bench, self.model, self.processor = bench, bench.model, bench.processor
        self.device, self.tags = bench.device, bench.tags
        self.hints = HintWriter(bench.processor)
        self.one = self.inputs(1)

    def script(self, rejected: int, length: int = LENGTH, half: bool = False) -> Script:
        script = geometry.script(self.processor, self.bench.eos, length, rejected, half=half)
        return script.to(self.device)

    def inputs(self, batch: int, question: str = QUESTION) -> Any:
        pictures = [geometry.picture(i, 112 if self.device == "cpu" else 560) for i in range(batch)]
        inputs = prepare_inputs(self.processor, pictures, [question] * batch, self.bench.family)
        return inputs.to(self.device)

    # ------------------------------------------------------------------ transformers
    def plain(self, inputs: Any, script: Script, length: int, static: bool, attempt: int = 0) -> torch.Tensor:
        options = {"cache_implementation": "static"} if static else {}
        return self.model.generate(
            **inputs,
            max_new_tokens=length,
            do_sample=False,
            logits_processor=LogitsProcessorList([Impose(script, inputs["input_ids"].shape[1], attempt)]),
            **options,
        )

    def naive(self, script: Script, rejected: int, static: bool, whole: bool) -> float:
        """Seconds of one answer: a full `generate` a rejection, the picture encoded again, to the end.

        `whole`: every attempt says the whole answer; else only what follows the verified prefix.
        """
        inputs = [
            self.inputs(1, QUESTION + self.hints.text([f"thing {i}" for i in range(a)]))
            for a in range(rejected + 1)
        ]

        def answer() -> None:
            for a, prompt in enumerate(inputs):
                kept = 0 if whole or a == 0 else 10 * a - 6
                part = Script(script.tokens[:, kept:], script.suspect[:, kept:], script.half, script.un)
                if kept:
                    prompt = _behind(prompt, script.tokens[a : a + 1, :kept])
                self.plain(prompt, part, part.tokens.shape[1], static, a)

        return seconds(answer, 2 if static else 1, 1 if static else 0)

    # ------------------------------------------------------------------ ours
    def ours(
        self,
        inputs: Any,
        script: Script,
        length: int = LENGTH,
        *,
        checking: bool = True,
        hints: int = 5,
        candidates: int = 1,
        branches: int = 1,
    ) -> tuple[list[Result], float]:
        """Decode so many branches of every prompt; the results, and seconds from the first step on."""
        backend = self.bench.backend
        self.bench.imposed.load(script)
        config = ResamplingConfig(threshold=THRESHOLD, hints=hints, candidates=candidates)
        rules = AnswerRules(
            self.bench.codec.decode, self.tags, Verifier(self.tags), length, frozenset({self.bench.eos}),
            hints=self.hints if hints and checking else None,
        )  # fmt: skip
        policy = ResamplePolicy if checking else PlainPolicy
        decoded = [
            Branch(node, policy(config, self.tags, length, 0.0), rules, order=(i, n))
            for i, node in enumerate(self.nodes(inputs, hints > 0))
            for n in range(branches)
        ]
        backend.reserve(max(MOST_SEQUENCES, len(decoded) * candidates))
        backend.began = None
        scheduler = Scheduler(backend, len(decoded))
        for branch in decoded:
            scheduler.add(branch)
        while scheduler.has_work:
            scheduler.step()
        synchronize()
        ended = time.perf_counter()
        results = [_result_of(branch) for branch in decoded]
        assert backend.began is not None
        return results, ended - backend.began

    def nodes(self, inputs: Any, hints: bool) -> list[Node]:
        """A node for each prompt, with its picture, which is encoded when it is prefilled."""
        pictures = self.bench.family.split_pictures(inputs)
        nodes = []
        for ids, mask, tensors in zip(inputs["input_ids"], inputs["attention_mask"], pictures, strict=True):
            prompt = tuple(ids[mask.bool()].tolist())
            at = self.hints.insert_at(prompt) if hints else None
            nodes.append(Node(prompt, (PictureRef(Picture(tensors)),), at))
        return nodes

    def decoding(self, script: Script, length: int = LENGTH, repeats: int = 3, **options: Any) -> float:
        """Median seconds of one answer from the prefilled cache to its end."""
        self.ours(self.one, script, length, **options)
        return statistics.median(self.ours(self.one, script, length, **options)[1] for _ in range(repeats))

    def raw(self, plan: StepPlan) -> float:
        """Seconds a captured step of sequences with this prompt takes when nothing waits for the host."""
        names = self.bench.add(max([*plan.plain, *(row for group in plan.groups for row in group)]))
        taken = self.bench.raw(plan)
        for name in names:
            self.bench.backend.release(name)
        return taken

    def same_bits(self, width: int) -> bool:
        """Whether steps of so many rows say the same bits once they are taken back and repeated."""
        names = self.bench.add(width)
        same = self.bench.same_bits(width)
        for name in names:
            self.bench.backend.release(name)
        return same


def _behind(prompt: Any, said: torch.Tensor) -> dict[str, Any]:
    """Inputs of `generate()` with ids that were said already behind them."""
    prompt, kept = dict(prompt), said.shape[1]
    prompt["input_ids"] = torch.cat((prompt["input_ids"], said), dim=1)
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in prompt:
            fill = torch.full_like(prompt[name][:, -1:], int(name == "attention_mask"))
            prompt[name] = torch.cat((prompt[name], fill.expand(-1, kept)), dim=1)
    return prompt


def _result_of(branch: Branch) -> Result:
    if branch.error is not None:
        raise branch.error
    assert branch.result is not None
    return branch.result


# ---------------------------------------------------------------------- figures
def measure(name: str, device: str, copy: float, quick: bool) -> Figures:
    bench, figures = Bench(name, device), Figures(name)
    c = Contenders(bench)
    with torch.no_grad():
        figures.update(weights_gb=bench.bytes / 1e9, prompt=c.one["input_ids"].shape[1])
        measure_one(c, figures, copy)
        measure_candidates(c, figures)
        if torch.cuda.is_available():
            figures.add("peak_gb", torch.cuda.max_memory_allocated() / 1e9)
        measure_transformers(c, figures, copy, quick)
        measure_second_turns(bench, figures)
        measure_batches(c, figures, (8, 32) if device != "cpu" else (2,))
        if device != "cpu":
            measure_branches(bench, figures)
            measure_branches_of_requests(c, figures)
            measure_large_batches(c, figures, (64, 128, 192))
    del c, bench
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return figures


def measure_one(c: Contenders, figures: Figures, copy: float) -> None:
    """One answer: steps, checking, rewinds."""
    scripts = {n: c.script(n) for n in (0, 1, 5)}
    clean, five = scripts[0], scripts[5]
    results, _ = c.ours(c.one, five)
    assert results[0].ids == tuple(five.tokens[5].tolist()), "the script was not followed"
    assert len(results[0].trace) == 5
    raw = c.raw(StepPlan([1]))
    figures.add("raw_step_ms", raw * 1e3)
    figures.add("raw_share", c.bench.bytes / raw / copy)
    figures.add("rewind_same_bits", c.same_bits(1))
    plain = c.script(0, LONG)
    on, off = c.decoding(plain, LONG) / LONG, c.decoding(plain, LONG, checking=False) / LONG
    figures.add("on_step_ms", on * 1e3)
    figures.add("off_step_ms", off * 1e3)
    figures.add("checking_overhead", on / off - 1)
    figures.add("bandwidth_share", c.bench.bytes / on / copy)
    figures.add("answer_seconds", {n: seconds(lambda n=n: c.ours(c.one, scripts[n])) for n in scripts})
    for key, hints in (("rewind_hint_steps", 5), ("rewind_steps", 0)):
        more = c.decoding(five, hints=hints) - c.decoding(clean, hints=hints)
        figures.add(key, (more / 5 - 6 * on) / on)
    long = c.script(20, LONG)
    figures.add("answer_20_of_220_seconds", seconds(lambda: c.ours(c.one, long, LONG)))
    runner = c.bench.kept
    figures.add("row_length", runner.length if runner else 0)
    figures.add("cache_gb", runner.bytes / 1e9 if runner else 0)


def measure_candidates(c: Contenders, figures: Figures) -> None:
    """Candidates of one phrase beside one attempt at it: end to end, and steps without a host."""
    clean, once = c.script(0), c.script(1)
    for m in (4, 16):
        base = c.decoding(clean)
        many, one = c.decoding(once, candidates=m) - base, c.decoding(once) - base
        figures.add(f"phrase_candidates_{m}_over_1", many / one)
        raw = c.raw(c.bench.grouped(1, m)) * 1e3
        figures.add(f"raw_candidates_{m}_over_1", raw / figures["raw_step_ms"])
    figures.add("candidates16_over_1", figures["raw_candidates_16_over_1"])


def measure_transformers(c: Contenders, figures: Figures, copy: float, quick: bool) -> None:
    """transformers with both kinds of cache, and the naive way of correcting with it."""
    clean, five = c.script(0), c.script(5)
    ours = figures["answer_seconds"][5]
    for static in (False, True):
        kind = "static" if static else "eager"
        if static and (quick or c.device == "cpu"):
            continue
        c.plain(c.one, clean, LENGTH, static)
        long_s = seconds(lambda s=static: c.plain(c.one, clean, LENGTH, s), 2)
        first = seconds(lambda s=static: c.plain(c.one, clean, SHORT, s), 2)
        step = (long_s - first) / (LENGTH - SHORT)
        figures.add(f"hf_{kind}_step_ms", step * 1e3)
        figures.add(f"hf_{kind}_share", c.bench.bytes / step / copy)
        figures.add(f"hf_{kind}_answer_seconds", long_s)
        if figures["model"] != "llava7b" and c.device != "cpu":
            continue
        for whole in (True, False):
            how = "whole" if whole else "prefix"
            if static and not whole:
                continue  # every prompt length is another compilation's worth of shapes
            taken = c.naive(five, 5, static, whole)
            figures.add(f"naive_{kind}_{how}_seconds", taken)
            figures.add(f"naive_{kind}_{how}_over_ours", taken / ours)


def measure_batches(c: Contenders, figures: Figures, sizes: Sequence[int]) -> None:
    """Batches in which one of ten phrases is rejected: every second row once, with five phrases a row."""
    script, clean = c.script(1, half=True), c.script(0)
    for batch in sizes:
        many = c.inputs(batch)
        c.ours(many, script)
        found, taken = c.ours(many, script)
        taken = min(taken, c.ours(many, script)[1])
        figures.add(f"batch{batch}_rejected", sum(len(r.trace) for r in found))
        figures.add(f"batch{batch}_raw_step_ms", c.raw(StepPlan(list(range(1, batch + 1)))) * 1e3)
        figures.add(f"batch{batch}_rewind_same_bits", c.same_bits(batch))
        figures.add(f"batch{batch}_decoding_seconds", taken)
        figures.add(f"batch{batch}_clean_decoding_seconds", c.ours(many, clean)[1])
        figures.add(f"batch{batch}_tokens_a_second", batch * LENGTH / taken)
        c.plain(many, clean, 2, False)
        eager = seconds(lambda b=many: c.plain(b, clean, LENGTH, False), 1, 0)
        start = seconds(lambda b=many: c.plain(b, clean, 1, False), 1, 0)
        rate = batch * (LENGTH - 1) / (eager - start)
        figures.add(f"batch{batch}_eager_tokens_a_second", rate)
        figures.add(f"batch{batch}_over_eager", figures[f"batch{batch}_tokens_a_second"] / rate)


def measure_branches_of_requests(c: Contenders, figures: Figures) -> None:
    """Sixteen requests of four branches each beside 64 requests, through the scheduler."""
    clean, requests, all_of_them = c.script(0), c.inputs(16), c.inputs(64)
    c.ours(requests, clean, branches=4)
    split = statistics.median(c.ours(requests, clean, branches=4)[1] for _ in range(3))
    c.ours(all_of_them, clean)
    alone = statistics.median(c.ours(all_of_them, clean)[1] for _ in range(3))
    figures.add("scheduled_branches64_step_ms", split / LENGTH * 1e3)
    figures.add("scheduled_rows64_step_ms", alone / LENGTH * 1e3)
    figures.add("scheduled_branches64_over_rows64", split / alone)


def measure_large_batches(c: Contenders, figures: Figures, sizes: Sequence[int]) -> None:
    """Tokens a second of as many rows as fit."""
    clean = c.script(0)
    for batch in sizes:
        try:
            many = c.inputs(batch)
            c.ours(many, clean)
            figures.add(f"batch{batch}_tokens_a_second", batch * LENGTH / c.ours(many, clean)[1])
        except Exception as error:
            figures.add(f"batch{batch}", f"{type(error).__name__}: {str(error)[:120]}")
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [*geometry.NAMES, "tiny"]
    parser.add_argument("--models", nargs="*", default=["llava7b", "qwen3b"], choices=names)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="leave out what has to be compiled")
    given = parser.parse_args()
    copy = copy_bandwidth(given.device) if given.device != "cpu" else 1e10
    print(f"copy bandwidth {copy / 1e12:.2f} TB/s", flush=True)
    report: dict[str, Any] = describe_environment(given.device) | {
        "command": f"python benchmarks/decode.py --models {' '.join(given.models)}",
        "copy_bandwidth": copy,
        "models": {},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    slug = report["device"].lower().replace(" ", "_").replace(",", "")
    for name in given.models:
        report["models"][name] = measure(name, given.device, copy, given.quick)
        report["claims"] = claims(report["models"])
        (given.out / f"decode_{slug}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def claims(models: dict[str, Any]) -> dict[str, Any]:
    llava, qwen = models.get("llava7b", {}), models.get("qwen3b", {})
    return {
        "llava7b_bandwidth_share": llava.get("bandwidth_share"),
        "qwen3b_bandwidth_share": qwen.get("bandwidth_share"),
        "checking_overhead": llava.get("checking_overhead"),
        "rewind_steps": llava.get("rewind_steps"),
        "rewind_hint_steps": llava.get("rewind_hint_steps"),
        "rewind_hint_steps_qwen3b": qwen.get("rewind_hint_steps"),
        "naive_over_ours_5": llava.get("naive_eager_whole_over_ours"),
        "naive_static_over_ours_5": llava.get("naive_static_whole_over_ours"),
        "candidates16_over_1": llava.get("candidates16_over_1"),
        "candidates16_over_1_qwen3b": qwen.get("candidates16_over_1"),
        "batch32_over_eager": llava.get("batch32_over_eager"),
        "branches64_over_rows64": llava.get("branches64_over_rows64"),
        "branches64_over_rows64_qwen3b": qwen.get("branches64_over_rows64"),
        "second_turn_over_prefill": llava.get("second_turn_over_prefill"),
        "second_turn_over_prefill_qwen3b": qwen.get("second_turn_over_prefill"),
        "second_turn_hint_removed_over_prefill": llava.get("second_turn_hint_removed_over_prefill"),
        "second_turn_hint_removed_over_prefill_qwen3b": qwen.get("second_turn_hint_removed_over_prefill"),
    }


if __name__ == "__main__":
    main()
