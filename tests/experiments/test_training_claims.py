"""Claims over seeds, against counting by hand and an independent AUROC."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from experiments.training_claims import auroc, choose_thresholds, figures, merge
from tests.warm_python import start_python

SCENES = 40


def counted(seed, wrong_rate, missed=0.0, extra=0, phrases=False):
    rng = np.random.default_rng(seed)
    objects = rng.integers(2, 6, SCENES)
    named = rng.binomial(objects, 1 - missed)
    wrong = rng.binomial(3, wrong_rate, SCENES)
    found = {
        "objects": objects, "named": named, "wrong": wrong, "mentions": named + wrong,
        "kept": np.full(SCENES, 30), "generated": np.full(SCENES, 30 + extra), "words": np.full(SCENES, 20),
        "empty": np.zeros(SCENES, int), "unresolved": np.zeros(SCENES, int),
    }  # fmt: skip
    found = {name: values.tolist() for name, values in found.items()}
    if phrases:
        scene = rng.integers(0, SCENES, 200)
        label = rng.integers(0, 2, 200)
        p = np.round(rng.random(200) * 0.7 + 0.3 * label, 1)  # with ties
        found["phrases"] = [
            list(each) for each in zip(scene.tolist(), p.tolist(), label.tolist(), strict=True)
        ]
    return found


def pieces(seeds=(0, 1), variant="main"):
    made = []
    for seed in seeds:
        made += [
            piece_of("twin", seed, variant, 0.3),
            piece_of("off", seed, variant, 0.35, phrases=True),
            piece_of("on", seed, variant, 0.1, extra=12),
            piece_of("strict", seed, variant, 0.02, missed=0.1),
        ]
    return made


def piece_of(row, seed, variant, rate, **changes):
    found = counted(seed * 10 + len(row), rate, **changes)
    return {
        "run": f"llava-{seed}-{variant}", "family": "llava", "seed": seed, "variant": variant,
        "split": "test", "row": row, "threshold": 0.1, "count": SCENES, "columns": found,
    }  # fmt: skip


def share(lines, row, part, whole, seeds=(0, 1)):
    chosen = [line["columns"] for line in lines if line["row"] == row and line["seed"] in seeds]
    return sum(sum(c[part]) for c in chosen) / sum(sum(c[whole]) for c in chosen)


def test_claims_pool_seeds_and_keep_their_signs():
    """A drop could be reported as a rise, or one seed's figures as all seeds'."""
    lines = pieces()
    claims = merge(lines)["claims"]["llava"]["test"]
    twin, on = (share(lines, row, "wrong", "mentions") for row in ("twin", "on"))
    assert claims["chair_i_drop"][0] == pytest.approx(1 - on / twin)
    assert claims["chair_i_drop"][1] <= claims["chair_i_drop"][0] <= claims["chair_i_drop"][2]
    covered = [share(lines, row, "named", "objects") for row in ("on", "strict", "twin")]
    assert claims["coverage_change"][0] == pytest.approx(covered[0] - covered[2])
    assert claims["strict_coverage_change"][0] == pytest.approx(covered[1] / covered[2] - 1)
    assert claims["tokens_ratio"][0] == pytest.approx(42 / 30)
    assert "yesno_change" not in claims
    seeds = merge(lines)["seeds"]["llava"]["test"]
    alone = 1 - share(lines, "on", "wrong", "mentions", (1,)) / share(
        lines, "twin", "wrong", "mentions", (1,)
    )
    assert seeds["1"]["chair_i_drop"][0] == pytest.approx(alone)


def test_a_seed_that_is_not_whole_is_left_out():
    """A run cut off by the clock would be compared with another seed's twin."""
    lines = pieces((0, 1))
    lines = [line for line in lines if not (line["seed"] == 1 and line["row"] == "strict")]
    assert merge(lines)["claims"] == merge(pieces((0,)))["claims"]


def test_ablations_stand_against_the_twin_of_their_seed():
    """A variant would be compared with figures of seeds that it was not trained with."""
    lines = pieces((0, 1))
    lines += [line for line in pieces((0,), "hints_0") if line["row"] != "twin"]
    table = merge(lines)["ablations"]["llava"]
    assert set(table) == {"main", "hints_0"}
    assert table["hints_0"]["chair_i_drop"] == table["main"]["chair_i_drop"]
    assert table["main"]["seeds"] == [0]
    assert merge(pieces((0, 1)))["ablations"] == {}


def test_auroc_is_mann_whitneys():
    """Ties or weights would be counted wrongly."""
    found = counted(3, 0.2, phrases=True)
    wrong = [p for _, p, label in found["phrases"] if label]
    right = [p for _, p, label in found["phrases"] if not label]
    value, low, high = auroc([found])
    expected = mannwhitneyu(wrong, right).statistic / (len(wrong) * len(right))
    assert value == pytest.approx(expected) and low < value < high
    assert figures(found)["auroc"][0] == pytest.approx(expected)
    assert np.isnan(auroc([{**found, "phrases": []}])[0])


def test_thresholds_are_chosen_as_said():
    """The default could cost coverage or tokens, the strict one too much coverage."""

    def at(coverage, wrong, generated):
        found = counted(0, 0.0)
        total = sum(found["objects"])
        found["named"] = [coverage * total / SCENES] * SCENES
        found["mentions"], found["wrong"] = [100] * SCENES, [wrong] * SCENES
        return found | {"generated": [30 * generated] * SCENES}

    twin = at(0.98, 10, 1)
    sweep = {
        0.01: at(0.80, 0.5, 3.0),
        0.03: at(0.93, 1, 2.0),
        0.07: at(0.98, 3, 1.45),
        0.1: at(0.979, 4, 1.3),
        0.2: at(0.98, 6, 1.1),
    }
    assert choose_thresholds(sweep, twin) == {"default": 0.1, "strict": 0.03}
    assert choose_thresholds({0.01: sweep[0.01]}, twin) == {"default": 0.01, "strict": 0.01}


def test_the_program_merges_what_is_whole(tmp_path):
    """A file cut off in the middle of a line could not be merged."""
    lines = "".join(json.dumps(line) + "\n" for line in pieces())
    (tmp_path / "a.jsonl").write_text(lines + '{"run": "cut', encoding="utf-8")
    program = Path(__file__).parents[2] / "benchmarks" / "scenes_training.py"
    out = tmp_path / "merged.json"
    process = start_python(program, "--merge", tmp_path / "a.jsonl", "--results", out)
    process.join()
    assert process.exitcode == 0
    merged = json.loads(out.read_text(encoding="utf-8"))
    assert set(merged["claims"]["llava"]["test"]) >= {"chair_i_drop", "auroc", "tokens_ratio"}
    assert {"device", "torch", "date", "command"} <= set(merged)
