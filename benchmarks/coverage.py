"""How often a 95 % interval holds the truth: 500 simulated benchmarks of each kind of metric.

    python benchmarks/coverage.py --out benchmarks/results/coverage.json

Each kind is drawn from a world whose true figure is known by computation, at the size of a published
benchmark: answers of one image lean together through a shared difficulty, numbers of mentions vary, scores
are skewed. Runs are judged in blocks with one set of draws a block, so that a round is one matrix product.
With 500 runs the share itself has a standard error of 1 point; `--runs 4000` brings it to 0.35.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reverse.evaluation.stats.intervals import Resampling, summarize_rounds
from reverse.evaluation.stats.scored_tables import Metric, Table, f1, macro, ratio
from reverse.files.atomic_write import write_json

LEVEL = 0.95
BLOCK = 20  # runs that share their draws


@dataclass(frozen=True)
class Kind:
    """A metric and a world: `draw(rng)` is one benchmark, `truth` what it would say of endless images."""

    name: str
    metric: Metric
    draw: Callable[[np.random.Generator], Table]
    truth: float
    like: str


def captions(images: int, rng: np.random.Generator) -> Table:
    """CHAIR: 1 + Poisson(5) mentions, each wrong with the image's own probability, Beta(0.6, 5.4)."""
    mentions = 1 + rng.poisson(5, images)
    wrong = rng.binomial(mentions, rng.beta(0.6, 5.4, images))
    clusters = list(map(str, range(images)))
    hall = (wrong > 0).astype(float)
    return Table(
        "captions", clusters, {"wrong": wrong, "mentions": mentions, "hall": hall, "ones": hall * 0 + 1}
    )


def scores(images: int, rng: np.random.Generator) -> Table:
    """MMHal: a score of 0 to 6 an image, piled up at both ends."""
    score = np.clip(np.round(rng.normal(2.6, 2.6, images)), 0, 6)
    return Table("scores", list(map(str, range(images))), {"score": score, "ones": np.ones(images)})


def yes_no(
    images: int, questions: int, parts: int, rng: np.random.Generator, hits: tuple[float, ...]
) -> Table:
    """POPE: the same images in every part, half of the questions positive, right with an image's own rate."""
    shape = (parts, images, questions)
    rate = np.array(hits)[:, None] + 0 * np.zeros((parts, images))
    strength = 12.0  # of the Beta: how much questions of one image lean together
    own = rng.beta(rate * strength, (1 - rate) * strength)[..., None]
    right = rng.random(shape) < own
    positive = np.broadcast_to(np.arange(questions) % 2 == 0, shape)
    columns = {"tp": right & positive, "fn": ~right & positive, "fp": ~right & ~positive, "right": right}
    names = [str(i) for _ in range(parts) for i in range(images) for _ in range(questions)]
    part = [f"part {p}" for p in range(parts) for _ in range(images * questions)]
    flat = {name: column.reshape(-1).astype(float) for name, column in columns.items()}
    return Table("yes_no", names, flat | {"ones": np.ones(len(names))}, part)


def kinds() -> list[Kind]:
    """The kinds of the issue at realistic sizes, and the smallest benchmark there is."""
    share = 0.6 / (0.6 + 5.4)  # mentions are independent of the rate: E[wrong] / E[mentions]
    some = 1 - _no_wrong(0.6, 5.4)
    grid = np.random.default_rng(1).normal(2.6, 2.6, 20_000_000)
    score = float(np.clip(np.round(grid), 0, 6).mean())
    accuracy = 0.87
    wide = (0.95, 0.90, 0.76)
    mean = ratio("mean", "score", "ones", "high")
    chair_i = ratio("ratio", "wrong", "mentions", "low")
    chair_s = ratio("share", "hall", "ones", "low")
    pope, averaged = f1("f1", "tp", "fp", "fn"), macro(f1("macro", "tp", "fp", "fn"))
    types = macro(ratio("macro", "right", "ones", "high"))
    middle = float(np.mean(wide))
    return [
        Kind("mean", mean, lambda r: scores(500, r), score, "a judge's score, 500 images"),
        Kind("mean_96", mean, lambda r: scores(96, r), score, "MMHal, 96 images"),
        Kind("share", chair_s, lambda r: captions(500, r), some, "CHAIRs, 500 images"),
        Kind("ratio", chair_i, lambda r: captions(500, r), share, "CHAIRi, 500 images"),
        Kind("ratio_96", chair_i, lambda r: captions(96, r), share, "CHAIRi, 96 images"),
        Kind("f1", pope, lambda r: yes_no(500, 6, 1, r, (accuracy,)), accuracy, "POPE, 6 on each of 500"),
        Kind(
            "macro", averaged, lambda r: yes_no(500, 6, 3, r, wide), middle, "POPE, 3 settings, same images"
        ),
        Kind("macro_apart", types, lambda r: _apart(r, wide), middle, "HaloQuest, 3 types of 200 images"),
    ]


def _no_wrong(a: float, b: float) -> float:
    """Of captions(): P(no wrong mention) = E[(1 - q) G(1 - q)] with G of Poisson(5), over q of Beta(a, b)."""
    from scipy.integrate import quad
    from scipy.stats import beta

    return quad(lambda q: (1 - q) * np.exp(-5 * q) * beta.pdf(q, a, b), 0, 1, limit=200)[0]


def _apart(rng: np.random.Generator, hits: tuple[float, ...]) -> Table:
    """Parts of different images."""
    table = yes_no(200, 1, len(hits), rng, hits)
    names = [f"{part}/{name}" for part, name in zip(table.parts or (), table.clusters, strict=True)]
    return Table(table.benchmark, names, table.columns, table.parts)


def coverage(kind: Kind, runs: int, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Of both methods: share of runs whose interval holds the truth, misses on either side, mean width."""
    rng = np.random.default_rng([seed, len(kind.name), sum(map(ord, kind.name))])
    found: dict[str, list[tuple[bool, bool, float]]] = {"percentile": [], "bca": []}
    for start in range(0, runs, BLOCK):
        tables = [kind.draw(rng) for _ in range(min(BLOCK, runs - start))]
        samplings = [Resampling(table) for table in tables]
        drawn = samplings[0].draw_cluster_counts(rounds, np.random.default_rng(int(rng.integers(2**31))))
        names = list(tables[0].columns)
        for sampling in samplings:
            sums = {name: drawn @ sampling.totals[name] for name in names}
            assert kind.metric.of is not None
            draws, point = kind.metric.of(sums), sampling.point(kind.metric)
            a = sampling.acceleration(kind.metric)
            for method, accelerate in (("percentile", None), ("bca", lambda a=a: a)):
                got = summarize_rounds(point, draws, LEVEL, accelerate, len(sampling.clusters))
                found[method].append((kind.truth < got.low, kind.truth > got.high, got.high - got.low))
    shares = {}
    for method, runs_found in found.items():
        below, above, width = np.array(runs_found, dtype=float).mean(axis=0)
        shares[method] = {
            "coverage": round(1 - below - above, 4),
            "truth_below": round(below, 4),
            "truth_above": round(above, 4),
            "width": round(width, 5),
        }
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report: dict = {
        "runs": given.runs,
        "rounds": given.rounds,
        "seed": given.seed,
        "level": LEVEL,
        "kinds": {},
    }
    began = time.perf_counter()
    for kind in kinds():
        found = coverage(kind, given.runs, given.rounds, given.seed)
        report["kinds"][kind.name] = {"like": kind.like, "truth": round(kind.truth, 5), **found}
        print(
            f"{kind.name:12} {kind.like:42}",
            *(f"{m} {f['coverage']:.3f}" for m, f in found.items()),
            flush=True,
        )
    report |= {"seconds": round(time.perf_counter() - began, 1), "python": platform.python_version()}
    if given.out:
        write_json(given.out, report)
    claim = {name: found["bca"]["coverage"] for name, found in report["kinds"].items()}
    print(json.dumps({"coverage_of_intervals": claim}))


if __name__ == "__main__":
    main()
