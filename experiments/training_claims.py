"""What training gained on scenes: thresholds chosen on val, paired figures over seeds, claims and a table.

    chosen = choose_thresholds(sweep, twin)                # {"default": 0.07, "strict": 0.02}
    merged = merge(pieces)                                  # {"claims": ..., "seeds": ..., "ablations": ...}

A piece is what one contender of one run answered about one split, as counts a scene (`columns`). Seeds are
pooled scene by scene: an interval is over scenes, all seeds of a scene leaning together; every seed also
stands for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reverse.evaluation.stats.bootstrap import estimate_ratio, estimate_ratio_difference

__all__ = [
    "COLUMNS",
    "CORRECTING",
    "CORRECTING_YES_NO",
    "STRICT_COVERAGE",
    "choose_thresholds",
    "columns",
    "figures",
    "merge",
    "points",
]

Piece = Mapping[str, Any]
COLUMNS = ("mentions", "wrong", "objects", "named", "words", "empty", "unresolved", "kept", "generated")
RATIOS = {
    "chair_i": ("wrong", "mentions"),
    "coverage": ("named", "objects"),
    "tokens_ratio": ("generated", "kept"),
    "accuracy": ("right", "asked"),
}
# How tiny models are corrected for the claims. The library's own settings (K=10, T rising by 0.1 up to 0.5,
# the least suspect phrase kept) are measured beside it, as row "library": where little was learnt, ten
# attempts at almost the same temperature repeat one phrase, and the least suspect of them is false.
CORRECTING = {"local_attempts": 4, "temperature_step": 0.4, "temperature_rise": 1.2, "on_exhausted": "drop"}
CORRECTING_YES_NO = {"yes_no": True, "local_attempts": 4, "temperature_step": 0.4, "temperature_rise": 1.2}
COVERAGE_MARGIN = 0.0025  # of coverage that the default threshold may cost on val: half of what is allowed
RATIO_MARGIN = 1.4  # tokens generated for each kept on val; 1.5 is allowed
STRICT_COVERAGE = 0.93  # of the twin's coverage that the strict threshold keeps on val; 0.9 is allowed


def columns(rows: Sequence[Mapping[str, Any]], phrases: bool = False) -> dict[str, Any]:
    """The counts of `reverse.evaluation.runs.scene_captions.count_caption`, as lists with a number a scene.

    With `phrases`, also every object phrase as [scene, p, wrong].
    """
    found: dict[str, Any] = {name: [int(row[name]) for row in rows] for name in COLUMNS}
    if phrases:
        found["phrases"] = [
            [scene, round(p, 6), int(wrong)]
            for scene, row in enumerate(rows)
            for _, p, wrong in row["phrases"]
        ]
    return found


def figures(found: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """[value, low, high] of whatever the columns allow, and the shares that have no interval."""
    shown: dict[str, Any] = {}
    for name, (part, whole) in RATIOS.items():
        if part in found:
            shown[name] = list(estimate_ratio(found[part], found[whole], seed=seed))
    if "wrong" in found:
        wrong = np.asarray(found["wrong"])
        shown["chair_s"] = float((wrong > 0).mean())
        for name in ("empty", "unresolved", "words"):
            shown[name] = float(np.mean(found[name]))
    if "phrases" in found:
        shown["auroc"] = list(auroc([found], seed=seed))
    return shown


def auroc(
    many: Sequence[Mapping[str, Any]], *, replicates: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over seeds of the probability that a wrong object phrase has a higher p than a right one.

    The interval is over scenes, the same draws for every seed; NaN where one kind of phrase is missing.
    """
    scenes = len(many[0]["mentions"])
    draws = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), size=replicates)
    weights = np.concatenate([np.ones((1, scenes)), draws])  # the first replicate is the sample itself
    values = np.mean([_auroc(found["phrases"], weights) for found in many], axis=0)
    spread = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(spread, [0.025, 0.975]) if len(spread) else (np.nan, np.nan)
    return float(values[0]), float(low), float(high)


def _auroc(phrases: Sequence[Sequence[float]], weights: np.ndarray) -> np.ndarray:
    """One value for each row of scene weights, ties counted half."""
    if not phrases:
        return np.full(len(weights), np.nan)
    scene, p, wrong = (np.array(column) for column in zip(*phrases, strict=True))
    levels, level = np.unique(p, return_inverse=True)
    values = np.empty(len(weights))
    for k, weight in enumerate(weights[:, scene.astype(int)]):
        bad = np.bincount(level, weight * wrong, len(levels))
        good = np.bincount(level, weight * (1 - wrong), len(levels))
        below = np.cumsum(good) - good
        total = bad.sum() * good.sum()
        values[k] = (bad * (below + good / 2)).sum() / total if total else np.nan
    return values


def choose_thresholds(
    sweep: Mapping[float, Mapping[str, Any]], twin: Mapping[str, Any]
) -> dict[str, float | None]:
    """The default and the strict threshold, from val answers at several thresholds and the twin's.

    Default: the lowest CHAIRi among those that keep the twin's coverage but `COVERAGE_MARGIN` and make at
    most `RATIO_MARGIN` tokens for each kept; where none does, the nearest to that. Strict: the lowest CHAIRi
    among those that keep `STRICT_COVERAGE` of the twin's.
    """
    at = {t: points(found) for t, found in sweep.items()}
    goal = points(twin)["coverage"]

    def misses(t: float) -> float:
        short = max(0.0, goal - COVERAGE_MARGIN - at[t]["coverage"])
        return short + 0.02 * max(0.0, at[t]["tokens_ratio"] - RATIO_MARGIN)

    default = min(at, key=lambda t: (round(misses(t), 6), at[t]["chair_i"], -t))
    held = [t for t in at if at[t]["coverage"] >= STRICT_COVERAGE * goal] or [max(at)]
    strict = min(held, key=lambda t: (at[t]["chair_i"], -t))
    return {"default": default, "strict": strict}


def points(found: Mapping[str, Any]) -> dict[str, float]:
    """The ratios that the columns allow, without their intervals."""
    return {
        name: float(np.sum(found[part]) / max(1, np.sum(found[whole])))
        for name, (part, whole) in RATIOS.items()
        if part in found
    }


# ---------------------------------------------------------------------- merging
def merge(pieces: Iterable[Piece]) -> dict[str, Any]:
    """Claims over seeds for each family and split, every seed's own, and the table of ablations.

    A piece has `run`, `family`, `seed`, `variant`, `split`, `row` ("twin", "off", "on", "strict", "library",
    "yesno_twin", "yesno_on"), `threshold` and `columns`; of two for the same place the later one counts.
    """
    table: dict[tuple[str, str, str, str, int], Piece] = {}
    for piece in pieces:
        table[tuple(piece[key] for key in ("variant", "family", "split", "row", "seed"))] = piece
    merged: dict[str, Any] = {"claims": {}, "seeds": {}, "rows": {}, "ablations": {}}
    for family in sorted({key[1] for key in table}):
        for split in ("test", "shift"):
            rows = _rows(table, "main", family, split)
            seeds = sorted(
                set.intersection(*(set(rows.get(row, {})) for row in ("twin", "off", "on", "strict")))
            )
            if not seeds:
                continue
            merged["claims"].setdefault(family, {})[split] = _claims(rows, seeds)
            merged["seeds"].setdefault(family, {})[split] = {str(s): _claims(rows, [s]) for s in seeds}
            merged["rows"].setdefault(family, {})[split] = {
                row: {
                    str(s): figures(found[s]["columns"]) | {"threshold": found[s].get("threshold")}
                    for s in found
                }
                for row, found in rows.items()
            }
        found = _ablations(table, family)
        if found:
            merged["ablations"][family] = found
    return merged


def _rows(
    table: Mapping[tuple[str, str, str, str, int], Piece], variant: str, family: str, split: str
) -> dict[str, dict[int, Piece]]:
    rows: dict[str, dict[int, Piece]] = {}
    for (v, f, s, row, seed), piece in table.items():
        if (v, f, s) == (variant, family, split):
            rows.setdefault(row, {})[seed] = piece
    return rows


def _claims(rows: Mapping[str, Mapping[int, Piece]], seeds: Sequence[int]) -> dict[str, Any]:
    """[value, low, high] each. Drops are relative, a coverage's change absolute, the strict's relative."""
    pooled = {row: _pooled([found[s] for s in seeds if s in found]) for row, found in rows.items()}
    on, strict, twin, off = (pooled[row] for row in ("on", "strict", "twin", "off"))
    claims = {
        "chair_i_drop": _drop(on, twin),
        "coverage_change": _change(on, twin, "coverage"),
        "strict_chair_i_drop": _drop(strict, twin),
        "strict_coverage_change": _change(strict, twin, "coverage", relative=True),
        "auroc": list(auroc([rows["off"][s]["columns"] for s in seeds])),
        "tokens_ratio": list(estimate_ratio(on["generated"], on["kept"])),
        "chair_i_drop_off": _drop(on, off),
        "coverage_change_off": _change(on, off, "coverage"),
        "strict_chair_i_drop_off": _drop(strict, off),
        "strict_coverage_change_off": _change(strict, off, "coverage", relative=True),
    }
    answered = [s for s in seeds if all(s in rows.get(row, {}) for row in ("yesno_twin", "yesno_on"))]
    if answered:
        ours, theirs = (_pooled([rows[row][s] for s in answered]) for row in ("yesno_on", "yesno_twin"))
        claims["yesno_change"] = _change(ours, theirs, "accuracy")
    return claims


def _pooled(pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    names = [name for name in pieces[0]["columns"] if name != "phrases"]
    return {name: np.sum([piece["columns"][name] for piece in pieces], axis=0) for name in names}


def _drop(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[float]:
    value, low, high = _change(first, second, "chair_i", relative=True)
    return [-value, -high, -low]


def _change(
    first: Mapping[str, Any], second: Mapping[str, Any], name: str, relative: bool = False
) -> list[float]:
    part, whole = RATIOS[name]
    return list(
        estimate_ratio_difference(
            (first[part], first[whole]), (second[part], second[whole]), relative=relative
        )
    )


def _ablations(table: Mapping[tuple[str, str, str, str, int], Piece], family: str) -> dict[str, Any]:
    """Each variant on test against the twin of `main` with the same seed; `main` for those seeds too."""
    main = _rows(table, "main", family, "test")
    twins = main.get("twin", {})
    variants = sorted({key[0] for key in table if key[1] == family} - {"main"})
    lines: dict[str, Any] = {}
    met: set[int] = set()
    for variant in [*variants, "main"]:
        rows = _rows(table, variant, family, "test")
        seeds = [s for s in rows.get("on", {}) if s in twins and s in rows.get("off", {})]
        if variant == "main":
            seeds = [s for s in seeds if s in met]
        if not seeds:
            continue
        met.update(seeds)
        rows = {**rows, "twin": twins}
        pooled = {
            row: _pooled([found[s] for s in seeds]) for row, found in rows.items() if set(seeds) <= set(found)
        }
        lines[variant] = {
            "seeds": seeds,
            "thresholds": [rows["on"][s].get("threshold") for s in seeds],
            "auroc": list(auroc([rows["off"][s]["columns"] for s in seeds])),
            "off": figures(pooled["off"]),
            "on": figures(pooled["on"]),
            "chair_i_drop": _drop(pooled["on"], pooled["twin"]),
            "coverage_change": _change(pooled["on"], pooled["twin"], "coverage"),
        }
        if "strict" in pooled:
            lines[variant]["strict_chair_i_drop"] = _drop(pooled["strict"], pooled["twin"])
            lines[variant]["strict_coverage_change"] = _change(
                pooled["strict"], pooled["twin"], "coverage", relative=True
            )
    return lines
