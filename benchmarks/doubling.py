"""Whether anything that reads outside text costs more than its length: CPU time for doubling sizes.

    python benchmarks/doubling.py [--out doubling.json] [--only WORD] [--state doubling.jsonl]

Every reader (of tags, answers, replies, records, recipes, hints, stop strings …) is shown hostile texts of
many shapes (`hostile_text.py`): each shape once at 8 and 64 kB, then the two shapes that grew fastest and the
one that took longest at 64 kB to 1 MB, doubling. The exponent is the slope of CPU time over size, both in
logarithms, by least squares: 1 is linear, 2 quadratic; 1.2 allows for caches and logarithms. Each time is the
best of three, of short calls the best of three sums over 10 ms, without garbage collection. What comes out
near or above 1.2 is timed twice more, and the best of all counts: other programs make a call longer, nothing
makes it shorter. Once a call took 2 s no larger size is tried; where 64 kB take that long, 4 to 64 kB are
measured instead.

A reader that refuses above a stated limit is bounded: it is measured up to that limit, and its refusal at
twice the limit is timed. Texts of answers while they are made (streams, sentence ends, stops) are read an id
at a time, at 2 to 32 kB.

`measure()` gives what the file holds: `doubling_exponent_max` is the largest exponent, `seconds_at_1mb` the
seconds of each reader's longest call at its largest size (1 MB, or the limit), `above_one_second` those of
them that are more than a second. With `--state` every reader is kept as soon as it is measured, and a later
call goes on behind it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core

from benchmarks.hostile_text import KB, SHAPES, Reader, list_readers

SIZES = tuple(64 * KB << k for k in range(5))
GROWING = tuple(2 * KB << k for k in range(5))  # of answers that are read an id at a time
MOST = 1.2  # the exponent that is claimed not to be passed
DOUBTFUL = 1.15  # from here on it is timed again
LONGEST = 2.0  # seconds of one call after which no larger size is tried
SCREENED = 0.5  # seconds of a screening call after which the shape is not screened at the larger size


def call_once(reader: Reader, given: Any) -> float:
    """CPU seconds of one call; a refusal (ValueError) counts as any other answer."""
    gc.disable()  # as timeit does: collections come in steps that depend on what else is in memory
    began = time.process_time()
    try:
        reader.read(given)
    except (ValueError, TypeError):
        pass
    except Exception as error:  # BadReply and its like: errors of the library's own are answers too
        if not type(error).__module__.startswith("reverse."):
            raise
    finally:
        spent = time.process_time() - began
        gc.enable()
    return spent


def time_call(reader: Reader, text: str, best_of: int = 3, target: float = 0.01) -> float:
    """CPU seconds of one call, the best of a few; what is short is called until it took `target` seconds."""
    given = reader.make(text)
    gc.collect(0)
    first = call_once(reader, given)
    if first > LONGEST:
        return first
    loops = max(1, min(1000, math.ceil(target / max(first, 1e-6))))
    if loops == 1:
        return min([first, *(call_once(reader, given) for _ in range(best_of - 1))])
    return min(sum(call_once(reader, given) for _ in range(loops)) / loops for _ in range(best_of))


def slope(seconds: dict[int, float]) -> float:
    """Least squares of log(seconds) over log(size)."""
    xs = [math.log2(size) for size in seconds]
    ys = [math.log2(max(value, 1e-7)) for value in seconds.values()]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def time_sizes(reader: Reader, shape: str, sizes: Sequence[int]) -> dict[int, float]:
    """Seconds at every size, up to the first that takes too long."""
    seconds: dict[int, float] = {}
    for size in sizes:
        seconds[size] = time_call(reader, SHAPES[shape](size))
        if seconds[size] > LONGEST:
            break
    return seconds


def measure_shape(reader: Reader, shape: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Seconds at every size, and their exponent."""
    seconds = time_sizes(reader, shape, sizes)
    if len(seconds) < 2:
        seconds = time_sizes(reader, shape, [sizes[0] >> k for k in range(4, -1, -1)])
    for _ in range(2):
        if slope(seconds) > DOUBTFUL:
            again = time_sizes(reader, shape, list(seconds))
            seconds = {size: min(value, again.get(size, value)) for size, value in seconds.items()}
    last = max(seconds)
    return {
        "reader": reader.name,
        "shape": shape,
        "exponent": round(slope(seconds), 3),
        "size": last,
        "slowest_seconds": round(seconds[last], 4),
        "is_cut_short": last < sizes[-1],
        "seconds": {str(size): round(value, 6) for size, value in seconds.items()},
    }


def choose_shapes(reader: Reader, sizes: Sequence[int]) -> list[str]:
    """The two shapes whose time grew fastest up to the first size, and the one that took longest."""
    growth: dict[str, float] = {}
    longest: dict[str, float] = {}
    for name, shape in SHAPES.items():
        small = call_once(reader, reader.make(shape(sizes[0] // 8)))
        is_slow = small > SCREENED
        large = 8 * small if is_slow else call_once(reader, reader.make(shape(sizes[0])))
        longest[name] = large
        if large > 1e-4:  # below that a clock's noise grows fastest
            growth[name] = math.inf if is_slow else math.log(large / max(small, 1e-7))
    fastest = sorted(growth, key=growth.__getitem__, reverse=True)[:2]
    return list(dict.fromkeys([*fastest, max(longest, key=longest.__getitem__)]))


def measure_reader(reader: Reader) -> dict[str, Any]:
    """The shapes that cost most, at doubling sizes; of a bounded reader also what its refusal costs."""
    sizes = GROWING if reader.growing else SIZES
    found: dict[str, Any] = {"reader": reader.name, "bounded": None}
    if reader.limit is not None and reader.limit < SIZES[-1]:
        sizes = tuple(reader.limit >> (4 - k) for k in range(5))
        seconds = time_call(reader, SHAPES["words"](2 * reader.limit))
        found["bounded"] = {
            "reader": reader.name,
            "limit": reader.limit,
            "refusal_seconds": round(seconds, 6),
        }
    call_once(reader, reader.make(SHAPES["words"](sizes[0])))  # what is made once
    found["cases"] = [measure_shape(reader, shape, sizes) for shape in choose_shapes(reader, sizes)]
    return found


def read_state(state: Path | None) -> dict[str, dict[str, Any]]:
    """Readers that an earlier call measured."""
    if state is None or not state.exists():
        return {}
    lines = state.read_text(encoding="utf-8").split("\n")
    return {found["reader"]: found for found in map(json.loads, filter(None, lines[:-1]))}


def measure(
    only: str = "", say: Callable[[str], None] = lambda line: None, state: Path | None = None
) -> dict[str, Any]:
    """Every reader at doubling sizes, by decreasing exponent; `doubling_exponent_max` is the largest.

    `state`: a file that every reader is appended to as soon as it is measured; those in it are not measured
    again.
    """
    known = read_state(state)
    all_found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for reader in list_readers(Path(folder)):
            if only not in reader.name:
                continue
            found = known.get(reader.name) or measure_reader(reader)
            all_found.append(found)
            if state is not None and reader.name not in known:
                with state.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(found) + "\n")
            for case in found["cases"]:
                say(
                    f"{case['exponent']:6.2f}  {case['slowest_seconds']:9.4f} s at "
                    f"{case['size'] / KB:6.0f} kB  {case['reader']}: {case['shape']}"
                )
    return summarise(all_found)


def summarise(all_found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all readers together."""
    cases = [case for found in all_found for case in found["cases"]]
    cases.sort(key=lambda case: case["exponent"], reverse=True)
    longest = {
        found["reader"]: max(found["cases"], key=lambda case: case["slowest_seconds"]) for found in all_found
    }
    return {
        "benchmark": "doubling",
        "cpu": platform.processor() or platform.machine(),
        "readers": len(all_found),
        "shapes": len(SHAPES),
        "doubling_exponent_max": cases[0]["exponent"] if cases else None,
        "above": [case for case in cases if case["exponent"] > MOST],
        "above_one_second": [
            {key: case[key] for key in ("reader", "shape", "size", "slowest_seconds")}
            for case in longest.values()
            if case["slowest_seconds"] > 1.0
        ],
        "seconds_at_1mb": {name: case["slowest_seconds"] for name, case in longest.items()},
        "bounded": [found["bounded"] for found in all_found if found["bounded"]],
        "cases": cases,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON there")
    parser.add_argument("--only", default="", help="readers whose name holds this")
    parser.add_argument("--state", type=Path, help="file of the readers that are measured, to go on with")
    options = parser.parse_args()
    print("exponent  CPU seconds             reader: shape")
    result = measure(options.only, partial(print, flush=True), options.state)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    shown = ("readers", "shapes", "doubling_exponent_max", "above_one_second")
    print(json.dumps({key: result[key] for key in shown} | {"above": len(result["above"])}))


if __name__ == "__main__":
    main()
