"""What decoding costs: transformers, the naive way of correcting, and ours, on models of the published sizes.

    python benchmarks/decode.py --models llava7b qwen3b --out benchmarks/results

Random weights; `geometry.Script` imposes the same tokens and corrections on every contender after its true
forward pass. Prints a table a model and one JSON line; kept as `decode_<device>.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geometry
import torch
from geometry import Script
from transformers import LogitsProcessor, LogitsProcessorList

from reverse.decoding.backend import Prefill
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.loop import Loop, Request
from reverse.decoding.policy import Policy
from reverse.decoding.rewriting import HintWriter
from reverse.decoding.sources import Batch
from reverse.decoding.static.backend import StaticBackend
from reverse.decoding.static.engine import Engine
from reverse.decoding.static.state import Reading, Style
from reverse.decoding.static.weights import text_model
from reverse.decoding.verifier import Verifier
from reverse.evaluation.environment import environment
from reverse.models import family_of, prepare_inputs
from reverse.tokens import token_ids

CHOICES = (*geometry.NAMES, "tiny")
LENGTH, THRESHOLD, QUESTION = 60, 0.1, "Describe this image."


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], repeats: int = 3, warm: int = 1) -> float:
    """Median wall-clock seconds of a call, work on the device included."""
    for _ in range(warm):
        call()
    taken = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        call()
        synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a large device-to-device copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * source.numel() * 2 / seconds(lambda: target.copy_(source), 10, 3)


class Impose(LogitsProcessor):
    """The script for `generate()`, which shows ids and not positions."""

    def __init__(self, script: Script, prompt: int, attempt: int = 0):
        self.script, self.prompt, self.attempt = script, prompt, attempt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        position = torch.full((len(scores),), input_ids.shape[1] - self.prompt, device=scores.device)
        self.script.impose(scores, position, torch.full_like(position, self.attempt))
        return scores


class Timed(StaticBackend):
    """Knows when its rows were in the cache: what comes after is decoding."""

    def admit(self, batch: Prefill) -> list[int]:
        rows = super().admit(batch)
        synchronize()
        self.admitted = time.perf_counter()
        return rows


class Contenders:
    """One model, one batch of prompts, everyone who decodes them."""

    def __init__(self, model: Any, processor: Any, device: str):
        self.model, self.processor, self.device = model, processor, device
        self.family = family_of(model)
        self.tags = token_ids(processor.tokenizer)
        ends = model.generation_config.eos_token_id
        self.eos = ends[0] if isinstance(ends, list) else ends
        self.text = text_model(model)
        self.hints = HintWriter(processor)
        self.engine: Engine | None = None
        self.imposed = Script.room(21, 220, self.tags.un, device)
        self.hook = self.imposed.impose

    def script(self, rejected: int, length: int = LENGTH, half: bool = False) -> Script:
        return geometry.script(self.processor, self.eos, length, rejected, half=half).to(self.device)

    def inputs(self, batch: int, question: str = QUESTION) -> Any:
        pictures = [geometry.picture(i, 112 if self.device == "cpu" else 560) for i in range(batch)]
        return prepare_inputs(self.processor, pictures, [question] * batch, self.family).to(self.device)

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
                    prompt = dict(prompt)
                    ids = prompt["input_ids"]
                    prompt["input_ids"] = torch.cat((ids, script.tokens[a : a + 1, :kept]), dim=1)
                    for name in ("attention_mask", "mm_token_type_ids"):
                        if name in prompt:
                            value = prompt[name]
                            fill = torch.full_like(value[:, -1:], int(name == "attention_mask"))
                            prompt[name] = torch.cat((value, fill.expand(-1, kept)), dim=1)
                self.plain(prompt, part, part.tokens.shape[1], static, a)

        return seconds(answer, 2 if static else 1, 1 if static else 0)

    # ------------------------------------------------------------------ ours
    def ours(
        self, inputs: Any, script: Script, length: int = LENGTH, *, checking: bool = True, hints: int = 5,
        candidates: int = 1, lanes: int | None = None,
    ) -> tuple[Any, float]:  # fmt: skip
        """Decode the batch; the results and the backend."""
        captured: list[Any] = []

        def capture(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
            captured.extend((input_ids, generation_config, kwargs))
            return input_ids

        with torch.no_grad():
            self.model.generate(**inputs, custom_generate=capture, max_new_tokens=length, do_sample=False)
            input_ids, config, kwargs = captured
            rows, width = input_ids.shape
            settings = ResamplingConfig(threshold=THRESHOLD, hints=hints, candidates=candidates)
            need = -(-(width + length + 160) // 128) * 128
            if self.engine is None or self.engine.lanes < rows or self.engine.slots < need:
                self.engine = None
                gc.collect()
                torch.cuda.empty_cache() if torch.cuda.is_available() else None
                self.engine = Engine(self.text, lanes or rows, need)
            self.imposed.load(script)
            style = Style(self.tags, well_formed=checking, hook=self.hook)
            engine = self.engine
            backend = Timed(
                self.model, lambda lanes, slots: engine, style=style, slots=rows, candidates=candidates
            )
            requests = [
                Request(
                    ids, Policy(settings, self.tags, length, 0.0, checking), 0, self.hints if hints else None
                )
                for ids in input_ids.tolist()
            ]
            eos = frozenset({self.eos})
            prefill = Prefill(input_ids, config, kwargs, (), eos, 0)
            verifier = Verifier(self.tags)
            source = Batch(requests, prefill, self.family.image_token_id(self.model.config))
            loop = Loop(backend, source, self.decode, verifier)
            results = []
            while not loop.done:
                results += loop.step()
        return [result for _, result in results], time.perf_counter() - backend.admitted

    def decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def same_bits(self, width: int) -> bool:
        """Whether ten steps of so many rows, taken back and repeated, say the same to the last bit."""
        engine, style = self.engine, Style(self.tags)
        assert engine is not None
        found = []
        for _ in range(3):
            engine.set({s: Reading(70 + s, 300 + s, 300 + s, 0, 0, 0.0) for s in range(width)})
            tickets = [engine.step(list(range(width)), [], style, False).read() for _ in range(10)]
            found.append(tickets)
        return found[0] == found[1] == found[2]

    def raw(self, width: int, candidates: int = 0, steps: int = 40) -> float:
        """Seconds a captured step takes when nothing waits for the host: rows, or candidates of one row."""
        engine, style = self.engine, Style(self.tags, hook=self.hook)
        assert engine is not None
        slots = engine.slots - steps * 4 - 8
        if candidates:
            if engine.candidates < candidates:
                engine.make_candidates(candidates, 256)
            strands = list(range(engine.lanes + 1, engine.lanes + 1 + candidates))
        else:
            strands = list(range(width))

        def go() -> None:
            place = (
                Reading(70, 0, slots, 0, 0, 0.0, 0.0, slots, 0)
                if candidates
                else Reading(70, slots, slots, 0, 0, 0.0)
            )
            engine.set(dict.fromkeys(strands, place))
            for _ in range(steps):
                if candidates:
                    engine.fork(strands, style, False)
                else:
                    engine.step(strands, [], style, False)

        return seconds(go, 5, 2) / steps


def measure(name: str, device: str, copy: float, quick: bool) -> dict[str, Any]:
    began = time.perf_counter()
    model, processor = geometry.build(name, device, torch.float32 if device == "cpu" else torch.bfloat16)
    c = Contenders(model, processor, device)
    out: dict[str, Any] = {"model": name, "weights_gb": c.text.bytes / 1e9}

    def say(key: str, value: Any) -> None:
        out[key] = value
        print(f"{name} {time.perf_counter() - began:6.1f} s  {key}: {value}", flush=True)

    def share(step: float) -> float:
        return c.text.bytes / step / copy

    one = c.inputs(1)
    say("prompt", one["input_ids"].shape[1])
    clean, once, five = c.script(0), c.script(1), c.script(5)
    short = 12

    def decoding(script: Script, length: int = LENGTH, repeats: int = 3, **options: Any) -> float:
        """Median seconds from the prefilled cache to the end of the answer."""
        c.ours(one, script, length, **options)
        return statistics.median(c.ours(one, script, length, **options)[1] for _ in range(repeats))

    results, _ = c.ours(one, five)
    assert results[0].ids == tuple(five.tokens[5].tolist()), "the script was not followed"
    assert len(results[0].trace) == 5
    say("slots", c.engine.slots if c.engine else 0)
    raw = c.raw(1)
    say("raw_step_ms", raw * 1e3)
    say("raw_share", share(raw))
    plain_220 = c.script(0, 220)
    say("rewind_same_bits", c.same_bits(1))
    on, off = decoding(plain_220, 220) / 220, decoding(plain_220, 220, checking=False) / 220
    say("on_step_ms", on * 1e3)
    say("off_step_ms", off * 1e3)
    say("checking_overhead", on / off - 1)
    say("bandwidth_share", share(on))
    scripts = {n: c.script(n) for n in (0, 1, 5)}
    answers = {n: seconds(lambda n=n: c.ours(one, scripts[n])) for n in scripts}
    say("answer_seconds", answers)
    hinted, bare = decoding(five) - decoding(clean), decoding(five, hints=0) - decoding(clean, hints=0)
    say("rewind_hint_steps", (hinted / 5 - 6 * on) / on)
    say("rewind_steps", (bare / 5 - 6 * on) / on)
    long = c.script(20, 220)
    say("answer_20_of_220_seconds", seconds(lambda: c.ours(one, long, 220)))
    for m in (4, 16):
        say(
            f"phrase_candidates_{m}_over_1",
            (decoding(once, candidates=m) - decoding(clean)) / (decoding(once) - decoding(clean)),
        )
        say(f"raw_candidates_{m}_over_1", c.raw(1, m) / raw)
    say("candidates16_over_1", out["raw_candidates_16_over_1"])
    if torch.cuda.is_available():
        say("peak_gb", torch.cuda.max_memory_allocated() / 1e9)
    say("engine_gb", c.engine.bytes / 1e9 if c.engine else 0)

    # transformers, batch 1
    for static in (False, True):
        kind = "static" if static else "eager"
        if static and (quick or device == "cpu"):
            continue
        c.plain(one, clean, LENGTH, static)
        long_s = seconds(lambda s=static: c.plain(one, clean, LENGTH, s), 2)
        first = seconds(lambda s=static: c.plain(one, clean, short, s), 2)
        step = (long_s - first) / (LENGTH - short)
        say(f"hf_{kind}_step_ms", step * 1e3)
        say(f"hf_{kind}_share", share(step))
        say(f"hf_{kind}_answer_seconds", long_s)
        if name == "llava7b" or device == "cpu":
            for whole in (True, False):
                how = "whole" if whole else "prefix"
                if static and not whole:
                    continue  # every prompt length is another compilation's worth of shapes
                taken = c.naive(five, 5, static, whole)
                say(f"naive_{kind}_{how}_seconds", taken)
                say(f"naive_{kind}_{how}_over_ours", taken / answers[5])

    # batches: a tenth of the phrases rejected is one of two rows once, with five phrases a row
    script = c.script(1, half=True)
    for batch in (8, 32) if device != "cpu" else (2,):
        many = c.inputs(batch)
        c.ours(many, script)
        found, decoding_s = c.ours(many, script)
        again = c.ours(many, script)[1]
        say(f"batch{batch}_rejected", sum(len(r.trace) for r in found))
        say(f"batch{batch}_raw_step_ms", c.raw(batch) * 1e3)
        say(f"batch{batch}_rewind_same_bits", c.same_bits(batch))
        say(f"batch{batch}_decoding_seconds", min(decoding_s, again))
        say(f"batch{batch}_clean_decoding_seconds", c.ours(many, clean)[1])
        say(f"batch{batch}_tokens_a_second", batch * LENGTH / min(decoding_s, again))
        c.plain(many, clean, 2, False)
        eager = seconds(lambda b=many: c.plain(b, clean, LENGTH, False), 1, 0)
        start = seconds(lambda b=many: c.plain(b, clean, 1, False), 1, 0)
        say(f"batch{batch}_eager_tokens_a_second", batch * (LENGTH - 1) / (eager - start))
        rate = batch * (LENGTH - 1) / (eager - start)
        say(f"batch{batch}_over_eager", out[f"batch{batch}_tokens_a_second"] / rate)
    if device != "cpu" and not quick:
        for batch in (64, 128, 192):
            try:
                many = c.inputs(batch)
                c.engine = None
                c.ours(many, clean)
                say(f"batch{batch}_tokens_a_second", batch * LENGTH / c.ours(many, clean)[1])
            except Exception as error:
                say(f"batch{batch}", f"{type(error).__name__}: {str(error)[:120]}")
                break
    c.engine = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--models", nargs="*", default=["llava7b", "qwen3b"], choices=[*geometry.NAMES, "tiny"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="leave out what has to be compiled")
    given = parser.parse_args()
    copy = copy_bandwidth(given.device) if given.device != "cpu" else 1e10
    print(f"copy bandwidth {copy / 1e12:.2f} TB/s", flush=True)
    report: dict[str, Any] = environment(given.device) | {
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
        "naive_over_ours_5": llava.get("naive_eager_whole_over_ours"),
        "naive_static_over_ours_5": llava.get("naive_static_whole_over_ours"),
        "candidates16_over_1": llava.get("candidates16_over_1"),
        "candidates16_over_1_qwen3b": qwen.get("candidates16_over_1"),
        "batch32_over_eager": llava.get("batch32_over_eager"),
    }


if __name__ == "__main__":
    main()
