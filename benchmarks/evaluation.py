"""Resampling on scenes against what the same tokens buy otherwise; the detector and its promises.

    python benchmarks/evaluation.py --tagged tiny-llava --twin out/twin --out OUT        # a GPU, or patience
    python benchmarks/evaluation.py --out OUT --count 60 --calibration 120               # rehearsal, CPU

Contenders describe the same test scenes: the plain twin (where one is given), the tagged model with checking
off and on (with the settings of the scenes claims, and the library's own), best of n by likelihood and by
mean p(`</CN>`), n chosen so that it costs at least the tokens of resampling, and VCD. All are compared with
resampling as pairs, with Holm's correction over the metrics of a pair; off and on describe the shifted
split too. The detector is measured on the answers with checking off; its threshold is calibrated on val and
checked on test, over 200 divisions.

`OUT` holds every answer (a stopped run goes on), a scored file and a forest plot for each contender, and
evaluation.json; `--results FILE` merges that into a file of several models, whose claims are those of the
worse one, and keeps claims made elsewhere (`chair_parity_captions`, `chair_score_seconds_500`,
`kills_survived`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.baselines import best_of_n, candidates_for, contrastive
from experiments.scene_tables import METRICS, scene_table
from experiments.training_claims import CORRECTING
from reverse.evaluation.benchmarks import BenchmarkQuestion
from reverse.evaluation.detector import calibration
from reverse.evaluation.detector.decoded_risk import calibrate_decoding
from reverse.evaluation.detector.phrase_truth import SceneTruth, read_phrases
from reverse.evaluation.detector.scene_decoding import SceneDecoding
from reverse.evaluation.detector.sweep import plot_sweep, write_sweep
from reverse.evaluation.reports.plots import plot_forest
from reverse.evaluation.runs.benchmark_run import Ask, Decoding
from reverse.evaluation.runs.environment import describe_environment
from reverse.evaluation.runs.scene_captions import PROMPT, SceneSet, compute_auroc, describe_scenes
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.intervals import estimate_intervals
from reverse.evaluation.stats.paired_comparison import compare_runs
from reverse.evaluation.stats.scored_tables import save_scored
from reverse.files.atomic_write import write_json
from reverse.files.json_values import replace_non_finite
from reverse.models import default_threshold, load

BASELINES = ("likelihood", "confidence")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tagged", default="tiny-llava")
    parser.add_argument("--twin", help="plain twin: same base, no tags")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500, help="test scenes")
    parser.add_argument("--calibration", type=int, default=500, help="val scenes")
    parser.add_argument("--risk", type=float, default=0.05)
    parser.add_argument("--threshold", type=float, help="of resampling; else the checkpoint's")
    parser.add_argument("--temperature", type=float, default=0.7, help="of best of n")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", type=Path, default=Path("benchmarks/results/coverage.json"))
    parser.add_argument("--no-decoding-risk", action="store_true", help="skip calibrating decoding itself")
    parser.add_argument("--results", type=Path, help="file of claims to merge into")
    given = parser.parse_args()
    import torch

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tagged = load(given.tagged, device=device, dtype="float32")  # the same answers in any batch
    threshold = given.threshold or default_threshold(tagged[0])
    report: dict[str, Any] = {
        "threshold": threshold,
        "settings": CORRECTING,
        "seconds": {},
        "count": given.count,
    }
    rows = _contenders(given, tagged, threshold, device, report)
    _table(given, rows, report)
    _detector(given, tagged, report)
    report["claims"] = _claims(given, report)
    command = shlex.join(["python", "benchmarks/evaluation.py", *sys.argv[1:]])
    report |= describe_environment(device) | {"command": command}
    write_json(given.out / "evaluation.json", replace_non_finite(report))
    if given.results:
        write_json(given.results, replace_non_finite(_merged(given, report)))
    print(json.dumps(replace_non_finite(report["claims"])))


def _merged(given: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    """The file of results with this model in it; its claims are those of the worse model."""
    before = json.loads(given.results.read_text(encoding="utf-8")) if given.results.exists() else {}
    models = {**before.get("models", {}), Path(given.tagged).name: report}
    each = [model["claims"] for model in models.values()]
    risks = [claims["calibrated_risk_observed"] for claims in each]  # None: nothing could be promised
    riskiest = each[max(range(len(each)), key=lambda k: 1.0 if risks[k] is None else risks[k])]
    claims = {
        "resampling_over_best_of_n": max(claims["resampling_over_best_of_n"] for claims in each),
        "auroc": min(claims["auroc"] for claims in each),
        "ece": max(claims["ece"] for claims in each),
        **{name: riskiest[name] for name in riskiest if name.startswith("calibrated_")},
    }
    if "coverage_of_intervals" in each[-1]:
        claims["coverage_of_intervals"] = each[-1]["coverage_of_intervals"]
    about = {name: report[name] for name in ("device", "torch", "transformers", "python", "date")}
    return {**about, "claims": {**before.get("claims", {}), **claims}, "models": models}


def _contenders(
    given: argparse.Namespace, tagged: Any, threshold: float, device: str, report: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Everyone's answers about the test scenes, as rows of counts."""
    rows: dict[str, list[dict[str, Any]]] = {}

    def run(
        name: str,
        decoding: Decoding,
        ask: Ask | None = None,
        split: str = "test",
        count: int = given.count,
    ) -> list[dict[str, Any]]:
        began = time.perf_counter()
        model, loaded = (given.twin, twin) if name == "twin" else (given.tagged, tagged)
        found = describe_scenes(
            model, loaded, given.out / split, name, decoding, SceneSet(split, count, given.seed),
            batch_size=given.batch_size, ask=ask,
        )  # fmt: skip
        report["seconds"][f"{split}/{name}"] = round(time.perf_counter() - began, 1)
        print(f"{split}/{name}: {len(found)} scenes", flush=True)
        return found

    off, on = Decoding("plain"), Decoding(threshold=threshold, settings=CORRECTING)
    if given.twin:
        twin = load(given.twin, device=device, dtype="float32", require_tokens=False)
        rows["twin"] = run("twin", off)
    rows["off"] = run("off", off)
    rows["on"] = run("on", on)
    rows["library"] = run("library", Decoding(threshold=threshold))
    made = sum(row["generated"] for row in rows["on"]) / sum(row["generated"] for row in rows["off"])
    n = candidates_for(made)
    report |= {"tokens_over_off": made, "n": n}

    # Both rules choose among the same answers, which are made once a batch.
    held: dict[str, dict[str, list[Any]]] = {}

    def choose(rule: str) -> Ask:
        def ask(questions: Sequence[BenchmarkQuestion]) -> Iterator[Any]:
            key = str(questions[0].id)
            if key not in held:
                held[key] = best_of_n(
                    *tagged, [question.picture() for question in questions], PROMPT, n=n, by=BASELINES,
                    temperature=given.temperature, batch_size=given.batch_size,
                    seed=given.seed + int(key.split("-")[1]),
                )  # fmt: skip
            return iter(held[key][rule])

        return ask

    def contrast(questions: Sequence[BenchmarkQuestion]) -> Iterator[Any]:
        pictures = [question.picture() for question in questions]
        return iter(contrastive(*tagged, pictures, PROMPT, batch_size=given.batch_size, seed=given.seed))

    for rule in BASELINES:
        what = {"best_of": n, "by": rule, "temperature": given.temperature}
        rows[f"best_{rule}"] = run(f"best_{rule}", Decoding("best_of_n", settings=what), choose(rule))
    rows["vcd"] = run(
        "vcd", Decoding("contrastive", settings={"alpha": 1.0, "beta": 0.1, "step": 500}), contrast
    )
    run("off", off, split="val", count=given.calibration)
    shifted = {name: run(name, each, split="shift") for name, each in (("off", off), ("on", on))}
    table_off, table_on = (scene_table(shifted[row]) for row in ("off", "on"))
    report["shift"] = {
        "off": _figures(table_off, given.seed),
        "on": _figures(table_on, given.seed),
        "on_minus_off": _differences(table_on, table_off, "off", given.seed),
        "auroc": compute_auroc(shifted["off"]),
    }
    return rows


def _figures(table: Any, seed: int) -> dict[str, list[float]]:
    return {
        metric: list(each)
        for metric, each in estimate_intervals(table, METRICS, BootstrapSettings(seed=seed)).items()
    }


def _differences(ours: Any, theirs: Any, name: str, seed: int) -> dict[str, Any]:
    found = compare_runs(ours, theirs, METRICS, BootstrapSettings(seed=seed), names=("on", name))
    return {each.metric: each.to_dict() for each in found}


def _table(given: argparse.Namespace, rows: dict[str, list[dict[str, Any]]], report: dict[str, Any]) -> None:
    """Figures with intervals, and every contender against resampling."""
    tables = {name: scene_table(found) for name, found in rows.items()}
    report["table"], report["on_minus"] = {}, {}
    for name, table in tables.items():
        save_scored(given.out / f"{name}.json", table, METRICS)
        report["table"][name] = _figures(table, given.seed)
        if name == "on":
            continue
        differences = compare_runs(
            tables["on"], table, METRICS, BootstrapSettings(seed=given.seed), names=("on", name)
        )
        report["on_minus"][name] = {each.metric: each.to_dict() for each in differences}
        plot_forest(differences, given.out / f"forest_{name}", f"scenes: resampling − {name}")
    print(f"{'':16}" + "".join(f"{metric.title[:18]:>24}" for metric in METRICS))
    for name, figures in report["table"].items():
        cells = []
        for metric in METRICS:
            scale = 100 if metric.unit == "%" else 1
            value, low, high = (scale * x for x in figures[metric.name])
            cells.append(f"{value:.2f} ({low:.2f}–{high:.2f})".rjust(24))
        print(f"{name:16}" + "".join(cells))


def _detector(given: argparse.Namespace, tagged: Any, report: dict[str, Any]) -> None:
    """Sweep of the test answers, calibration on val, the promise over divisions of both."""
    test = read_phrases(given.out / "test" / "off.jsonl", SceneTruth(given.seed))
    val = read_phrases(given.out / "val" / "off.jsonl", SceneTruth(given.seed))
    report["detector"] = write_sweep(
        test, given.out / "sweep", BootstrapSettings(rounds=1000, seed=given.seed)
    )
    plot_sweep(test, given.out / "sweep")
    chosen = calibration.calibrate(val, calibration.RiskTarget(given.risk))
    report["calibration"] = {
        **chosen.to_dict(),
        "promise": calibration.describe_promise(chosen),
        "test": calibration.check_on_others(test, chosen, given.seed),
        "resplits": {
            rule: calibration.resplit(
                calibration.join_detectors(val, test),
                calibration.RiskTarget(given.risk, rule=rule),
                seed=given.seed,
            )
            for rule in ("betting", "hoeffding-bentkus", "conformal")
        },
    }
    if chosen.threshold is not None and not given.no_decoding_risk:
        # the pictures that chose the start must not be those that test it
        of_decoding, tried = calibrate_decoding(
            SceneDecoding(
                given.tagged, "test", given.count, given.batch_size, seed=given.seed, loaded=tagged
            ),
            chosen.threshold, given.out / "decoding_risk", chosen.target, given_by=val.images,
        )  # fmt: skip
        report["calibration"]["of_decoding"] = {"chosen": of_decoding.to_dict(), "tried": tried}


def _claims(given: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    table, again = report["table"], report["calibration"]["resplits"]["betting"]
    rival = min(table[f"best_{rule}"]["chair_i"][0] for rule in BASELINES)  # the better one
    claims: dict[str, Any] = {
        "resampling_over_best_of_n": table["on"]["chair_i"][0] / rival if rival else float("nan"),
        "auroc": report["detector"]["figures"]["auroc"]["point"],
        "ece": report["detector"]["figures"]["ece"]["point"],
        "calibrated_risk_promised": again["promised"],
        "calibrated_risk_observed": again["observed"],
        "calibrated_without_promise": again["without_promise"],
    }
    if given.coverage.is_file():
        kinds = json.loads(given.coverage.read_text(encoding="utf-8"))["kinds"]
        claims["coverage_of_intervals"] = {name: each["bca"]["coverage"] for name, each in kinds.items()}
    return claims


if __name__ == "__main__":
    main()
