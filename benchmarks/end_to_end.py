"""From JPEG files to text: `generate_many()` on models of the published sizes, and its share of decoding.

    python benchmarks/end_to_end.py --out benchmarks/results

Random weights that never end an answer by themselves; every request has a file of its own, 640x480. A run is
held against what is measured in the same process: one batch whose pictures are prepared is encoded and
prefilled at once, and decoded. `--tiny` rehearses all of it on a CPU. Kept as `end_to_end_<device>.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import reverse
from reverse.decoding import engine as engine_module
from reverse.decoding.backends.auto import choose_backend, release
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.preparing.preparing_threads import PreparingThreads, count_cores
from reverse.decoding.request import Request
from reverse.decoding.scheduling import scheduler as scheduler_module
from reverse.decoding.shared_engines import find_shared_engine
from reverse.evaluation.runs.environment import describe_environment
from reverse.tokens import find_token_ids

QUESTION, THRESHOLD, SIZE = "Describe this image.", 0.1, (640, 480)
WAVES = {8: 4, 32: 6, 64: 2}  # batches in a run of so many sequences
CACHE = 32 << 20  # bytes of features that are kept: full in the first half of every run
ASKED = 0.9  # of the efficiency at 32 sequences


class Clock:
    """Seconds that a backend spends in each verb, and when the pictures and prompts of a batch were in."""

    def __init__(self, synchronizes: bool = False):
        self.synchronizes = synchronizes
        self.seconds = dict.fromkeys(("encode", "add", "step"), 0.0)
        self.calls = dict.fromkeys(self.seconds, 0)
        self.first_encode = self.last_add = 0.0


class TimedBackend:
    """A backend whose verbs are timed by `clock`; it is otherwise that of `backend`."""

    def __init__(self, backend: Any, clock: Clock):
        self._backend, self._clock = backend, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def _timed(self, verb: str, *args: Any) -> Any:
        clock, began = self._clock, time.perf_counter()
        if verb == "encode":
            clock.first_encode = clock.first_encode or began
        found = getattr(self._backend, verb)(*args)
        if verb == "add" or clock.synchronizes:
            synchronize()
        ended = time.perf_counter()
        if verb == "add":
            clock.last_add = ended
        clock.seconds[verb] += ended - began
        clock.calls[verb] += 1
        return found

    def encode(self, pictures: Any) -> Any:
        return self._timed("encode", pictures)

    def add(self, prompts: Any) -> Any:
        return self._timed("add", prompts)

    def step(self) -> Any:
        return self._timed("step")


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def timed_backends(clock: Clock) -> Iterator[None]:
    """Let engines choose backends that `clock` times."""

    def choose(*args: Any, **kwargs: Any) -> Any:
        return TimedBackend(choose_backend(*args, **kwargs), clock)

    engine_module.choose_backend = choose
    try:
        yield
    finally:
        engine_module.choose_backend = choose_backend


@contextmanager
def prefilled_together(count: int) -> Iterator[None]:
    """Let the engine wait until it can prefill so many prompts in one batch."""
    before = scheduler_module.PREFILL
    scheduler_module.PREFILL = engine_module.PREFILL = count
    try:
        yield
    finally:
        scheduler_module.PREFILL = engine_module.PREFILL = before


def write_pictures(folder: Path, count: int) -> list[str]:
    """JPEG files of coloured clouds, each another."""
    files = []
    for i in range(count):
        small = np.random.default_rng(i).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)
        files.append(str(folder / f"{i}.jpg"))
        picture.save(files[-1], quality=90)
    return files


def build(name: str, device: str) -> tuple[Any, Any]:
    """A model that never ends an answer nor opens a phrase by itself, and its processor."""
    if name.startswith("tiny-"):
        model, processor = reverse.load(name, device=device)
    else:
        import geometry

        model, processor = geometry.build(name, device, torch.bfloat16)
    ends = model.generation_config.eos_token_id
    ids = [*(ends if isinstance(ends, list) else [ends]), *find_token_ids(processor.tokenizer)]
    with torch.no_grad():  # a logit of 0 is never the largest
        model.get_output_embeddings().weight[ids] = 0
    return model, processor


class Bench:
    """One model and the files that it is asked about."""

    def __init__(self, name: str, device: str, files: Sequence[str], length: int):
        self.model, self.processor = build(name, device)
        self.files, self.length = files, length
        self.engine = find_shared_engine(self.model, self.processor)
        self.engine.pictures.most_bytes = CACHE

    def answer(self, sequences: int, count: int, clock: Clock) -> dict[str, Any]:
        """Ask about `count` files; seconds, tokens a second, and peaks of memory of both halves."""
        requests = [{"images": file, "prompt": QUESTION} for file in self.files[:count]]
        assert len(requests) == count, "too few files"
        peaks, host = [], []
        reset_peak()
        with timed_backends(clock):
            began = time.perf_counter()
            answers = reverse.generate_many(
                self.model,
                self.processor,
                requests,
                max_sequences=sequences,
                ordered=False,
                threshold=THRESHOLD,
                max_new_tokens=self.length,
            )
            tokens = 0
            for n, (_, result) in enumerate(answers, 1):
                tokens += len(result.ids)
                if n in (count // 2, count):
                    peaks.append(reset_peak())
                    host.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
            seconds = time.perf_counter() - began
        self._rest()
        assert tokens == count * self.length, f"{tokens} tokens of {count} answers of {self.length}"
        return {
            "requests": count,
            "seconds": seconds,
            "tokens_a_second": tokens / seconds,
            "peak_gb_halves": peaks,
            "host_gb_halves": host,
            "ended": began + seconds,
        }

    def batch(self, sequences: int) -> tuple[float, float]:
        """Seconds to encode and prefill a batch that is prepared, and to decode it to its end."""
        for _ in range(5):
            clock = Clock()
            with prefilled_together(sequences):
                found = self.answer(sequences, sequences, clock)
            if clock.calls["add"] == 1:
                return clock.last_add - clock.first_encode, found["ended"] - clock.last_add
        raise RuntimeError(f"one batch of {sequences} was prefilled in {clock.calls['add']} parts")

    def prepare(self, threads: int, count: int) -> float:
        """Seconds in which so many threads prepare a picture with its prompt."""
        pool = PreparingThreads(threads)

        def prepare(file: str) -> Any:
            request = make_request(file, self.length)
            return self.engine.preparer.prepare(request.conversation, request, False)

        prepare(self.files[-1])
        began = time.perf_counter()
        futures = [pool.submit(i, partial(prepare, file)) for i, file in enumerate(self.files[:count])]
        for future in futures:
            future.result()
        seconds = (time.perf_counter() - began) / count
        pool.close()
        self.engine.pictures.forget()
        return seconds

    def _rest(self) -> None:
        """Wait until the engine has let go of everything."""
        while self.engine.has_work or self.engine._threads is not None:
            time.sleep(0.001)


def make_request(file: str, length: int) -> Request:
    """A request about a file."""
    return Request(file, QUESTION, config=ResamplingConfig(threshold=THRESHOLD), max_new_tokens=length)


def reset_peak() -> float:
    """GB of device memory allocated at most since the last call."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure(
    bench: Bench, sizes: Sequence[int], waves: dict[int, int], out: dict[str, Any], deadline: float
) -> None:
    """Fill `out` with what was measured at each number of sequences, the one of the claims first.

    After the `deadline` no other number of sequences is begun.
    """
    began = time.perf_counter()

    def say(key: str, value: Any) -> None:
        out[key] = value
        print(f"{out['model']} {time.perf_counter() - began:6.1f} s  {key}: {value}", flush=True)

    for threads in sorted({1, min(8, count_cores())}):
        say(f"prepare_{threads}_threads_ms", bench.prepare(threads, min(32, len(bench.files))) * 1e3)
    for n in sizes:
        if n != sizes[0] and time.perf_counter() > deadline:
            say(f"sequences{n}", None)
            continue
        bench.batch(n)  # captures the step of so many rows
        prefill, decode = (min(each) for each in zip(*(bench.batch(n) for _ in range(2)), strict=True))
        bench.answer(n, 2 * n, Clock())
        clock = Clock()
        found = bench.answer(n, waves[n] * n, clock)
        found.pop("ended")
        reference = waves[n] * (prefill + decode)
        found |= {
            "batch_encode_and_prefill_seconds": prefill,
            "batch_decode_seconds": decode,
            "decode_tokens_a_second": n * bench.length / decode,
            "efficiency": reference / found["seconds"],
            "over_decode": waves[n] * decode / found["seconds"],
            "calls": clock.calls,
        }
        say(f"sequences{n}", found)
        if n == sizes[0]:
            clock = Clock(synchronizes=True)
            staged = bench.answer(n, 2 * n, clock)["seconds"]
            shares = {verb: spent / staged for verb, spent in clock.seconds.items()}
            say("stages", shares | {"waiting_and_host": 1 - sum(shares.values()), "seconds": staged})


def claims(models: dict[str, Any], main: int) -> dict[str, Any]:
    """What later versions are held against."""
    found: dict[str, Any] = {}
    for name, figures in models.items():
        at = figures.get(f"sequences{main}") or {}
        found[f"e2e_efficiency_{name}"] = at.get("efficiency")
        found[f"e2e_over_decode_{name}"] = at.get("over_decode")
        peaks = at.get("peak_gb_halves", [])
        found[f"e2e_constant_memory_{name}"] = len(peaks) == 2 and peaks[1] <= peaks[0] * 1.001
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, write the file after each model, and return what it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="*", default=["llava7b", "qwen3b"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sequences", nargs="*", type=int, default=[32, 8, 64], help="the claims' one first")
    parser.add_argument("--length", type=int, default=100, help="tokens an answer")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds in which to be done, about")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--tiny", action="store_true", help="the bundled models, few and short answers")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    if given.tiny:
        given.models, given.sequences, given.length = ["tiny-llava", "tiny-qwen"], [4, 8], 8
        given.limit = 3600.0
    waves = {n: 2 if given.tiny else WAVES.get(n, 4) for n in given.sequences}
    report: dict[str, Any] = describe_environment(given.device) | {
        "command": f"python benchmarks/end_to_end.py --models {' '.join(given.models)}",
        "cores": count_cores(),
        "asked": ASKED,
        "models": {},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    slug = report["device"].lower().replace(" ", "_").replace(",", "")
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder), max(n * waves[n] for n in given.sequences))
        for number, name in enumerate(given.models, 1):
            figures: dict[str, Any] = {"model": name}
            report["models"][name] = figures
            bench = Bench(name, given.device, files, given.length)
            try:
                deadline = began + given.limit * number / len(given.models) - 20  # what one size takes
                measure(bench, given.sequences, waves, figures, deadline)
            finally:
                report["claims"] = claims(report["models"], given.sequences[0])
                text = json.dumps(report, indent=1) + "\n"
                (given.out / f"end_to_end_{slug}.json").write_text(text, encoding="utf-8")
            release(bench.model)
            del bench
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    print(json.dumps(report))
    return report


if __name__ == "__main__":
    main()
