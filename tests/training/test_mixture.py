"""Mixtures: every part comes as often as it is to, in an order that depends on seed and sizes alone."""

import json
from collections import Counter

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.records.schema import make_record
from reverse.errors import RequestError
from reverse.training.data.mixture import Mixture, draw_passes
from reverse.training.dry_run import dry_run
from reverse.training.recipes.mixture_plan import PartPlan, check_plans, count_items
from reverse.training.recipes.recipe import as_yaml, load_recipe
from reverse.training.training_run import run_recipe


class Numbers(Dataset):
    """Items that are (part, number)."""

    def __init__(self, part, size):
        self.part, self.size = part, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.part, range(self.size)[index]

    def lengths(self):
        return np.arange(1, self.size + 1)


def read(ordered):
    return [ordered[k] for k in range(len(ordered))]


PLANS = st.one_of(
    st.builds(lambda repeat: PartPlan(repeat=repeat), st.floats(0.1, 3)),
    st.builds(lambda share: PartPlan(share=share), st.floats(0.05, 0.2)),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), PLANS), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_every_part_comes_as_often_as_it_is_to(parts, passes, seed):
    """A small set would drown, or a replayed one would come ten times a pass."""
    parts = [(10, PartPlan()), *parts]
    sizes, plans = [size for size, _ in parts], [plan for _, plan in parts]
    mixture = Mixture([Numbers(k, size) for k, size in enumerate(sizes)], plans, seed=seed)
    items = read(mixture.arrange(passes))
    assert len(items) == passes * len(mixture)
    for number in range(passes):
        found = Counter(part for part, _ in items[number * len(mixture) : (number + 1) * len(mixture)])
        assert [found[k] for k in range(len(sizes))] == mixture.counts
    for k, plan in enumerate(plans):
        if plan.share is not None:
            assert abs(mixture.counts[k] / len(mixture) - plan.share) <= 1 / len(mixture) + 0.05
        else:
            assert mixture.counts[k] == max(1, round(sizes[k] * plan.repeat))
        times = Counter(number for part, number in items if part == k)
        assert max(times.values()) - min(times.get(i, 0) for i in range(sizes[k])) <= 1  # all alike
    assert read(mixture.arrange(passes + 1))[: len(items)] == items  # a longer run begins in the same way


def test_order_depends_on_the_seed_alone():
    """A run that goes on, or one with other workers, would see other records."""
    parts, plans = [Numbers(0, 30), Numbers(1, 7)], [PartPlan(), PartPlan(share=0.4)]
    orders = [read(Mixture(parts, plans, seed=seed).arrange(2)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    mixture = Mixture(parts, plans, seed=0)
    first_pass = read(mixture.arrange(1, shuffle=False))
    assert first_pass == [mixture[k] for k in range(len(mixture))]
    assert sorted(first_pass) == sorted(read(mixture.arrange(1)))


def test_groups_hold_items_of_about_one_length():
    """Grouping would be dropped without a word, and half of a batch would be padding."""
    mixture = Mixture([Numbers(0, 400), Numbers(1, 400)], [PartPlan(), PartPlan(repeat=0.5)])
    items = read(mixture.arrange(2, group=8))
    spreads = [np.ptp([number for _, number in items[k : k + 8]]) for k in range(0, len(items), 8)]
    assert len(items) == 2 * len(mixture) and np.mean(spreads) < 20


def test_a_part_brings_others_of_its_records_to_the_next_pass():
    """Half of a replayed set would never be seen."""
    passes = draw_passes([10], [5], 2, seed=3)
    assert sorted(passes.flatten()) == list(range(10))


@pytest.mark.parametrize(
    ("plans", "match"),
    [
        ([PartPlan(0.5), PartPlan(0.4)], "add up to 0.9 and not to 1"),
        ([PartPlan(0.6), PartPlan(0.4), PartPlan()], "leaves nothing"),
        ([PartPlan(0.5, 2.0), PartPlan()], "give one of them"),
    ],
)
def test_shares_that_cannot_be_had_are_refused(plans, match):
    """Shares would be stretched in silence."""
    with pytest.raises(RequestError, match=match):
        check_plans(plans)


def test_counts():
    """What the documents say of a pass."""
    assert count_items([1000, 50], [PartPlan(), PartPlan(share=0.2)]) == [1000, 250]
    assert count_items([30, 10], [PartPlan(share=0.5), PartPlan(share=0.5)]) == [20, 20]
    assert count_items([30, 10], [PartPlan(repeat=0.5), PartPlan(repeat=3)]) == [15, 30]
    with pytest.raises(RequestError, match="smaller values"):
        count_items([10**7], [PartPlan(repeat=1000)])


@pytest.fixture
def recipe_file(tmp_path):
    def write(parts=None, **optim):
        for name, count in (("solve", 12), ("replay", 3)):
            records = [make_record(f"{name}{k}", None, f"{name} {k}?", f"It is {k}.") for k in range(count)]
            (tmp_path / f"{name}.json").write_text(json.dumps(records))
        solve, replay = str(tmp_path / "solve.json"), str(tmp_path / "replay.json")
        given = {
            "model": "tiny-llava",
            "output": str(tmp_path / "out"),
            "data": {
                "records": parts or [{"records": solve}, {"records": replay, "share": 0.25, "weight": 4}],
                "images": str(tmp_path),
                "workers": 0,
            },
            "optim": {"batch": 2, "global_batch": 4, "lr": 1e-4, "steps": 4, **optim},
            "log": {"save_steps": 2},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(given))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([], "1 to 64 parts"),
        (
            [{"record": "a"}],
            r"unknown key 'data.records.0.record' .*did you mean data.records.0",
        ),
        ([{"records": "a", "share": 0}], r"data.records.0.share must be above 0, got 0"),
        ([{"records": "a", "weight": 5000}], r"data.records.0.weight must be at most 1000"),
        ([{"records": " "}], r"data.records.0.records is empty"),
        (["a.json"], "data.records.0 must hold keys and values"),
        ([{"images": "a"}], "lacks data.records.0.records"),
        ([{"records": "a", "limit": "x"}], "data.records.0.limit must be of type int or none"),
        ([{"records": "a", "share": 0.5}, {"records": "b", "share": 0.6}], "add up to 1.1"),
    ],
)
def test_faults_of_parts_are_named(recipe_file, tmp_path, parts, match):
    """A misspelt key of a part would be a default."""
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "output": "o", "data": {"records": parts}}))
    with pytest.raises(RequestError, match=match):
        load_recipe(str(path))


def test_dry_run_shows_the_parts(recipe_file):
    """Nobody would see that a set is too small before the run is at its end."""
    path = recipe_file()
    plan = dry_run(load_recipe(path), quiet=True)
    assert [(part["count"], part["items"], part["weight"]) for part in plan["parts"]] == [
        (12, 12, 1),
        (3, 4, 4),
    ]
    assert plan["records"]["trained"] == 16
    shown = CliRunner().invoke(app, ["train", path, "--dry-run", "--quiet"])
    assert shown.exit_code == 0, shown.output
    assert "4 items a pass (25.0%) of 3 records, weight 4" in shown.output


def test_bad_records_of_a_part_are_named(recipe_file, tmp_path):
    """A record would be looked for in the wrong file."""
    path = recipe_file()
    (tmp_path / "replay.json").write_text(json.dumps([make_record("1", None, "Q?", "A</UN>")] * 3))
    with pytest.raises(ValueError, match=r"3 of 3 records of .*replay.json"):
        dry_run(load_recipe(path), quiet=True)
    path = recipe_file(parts=[{"records": str(tmp_path / "none.json")}])
    with pytest.raises(FileNotFoundError, match=r"data.records.0.records: no such file"):
        dry_run(load_recipe(path), quiet=True)


def test_a_mixture_is_trained_and_goes_on(recipe_file, tmp_path):
    """A run that goes on would see other records than one that was not stopped."""
    from transformers import TrainerCallback

    from reverse.training import sft

    path = recipe_file()
    whole = run_recipe(load_recipe(path), quiet=True)
    assert whole["data"]["parts"][1]["weight"] == 4 and whole["data"]["left_out"]["records"] == [[], []]
    again = load_recipe(str(tmp_path / "out" / "recipe.yaml"))
    assert run_recipe(again, quiet=True)["losses"] == whole["losses"]  # finished: not repeated
    assert as_yaml(again) == as_yaml(load_recipe(path))
    assert not list(tmp_path.glob("*.checked.json"))

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    cut = load_recipe(path, [f"output={tmp_path / 'cut'}"])
    train = sft.train
    from reverse.training import training_run

    training_run.train = lambda *given, **options: train(*given, callbacks=[Stop()], **options)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_recipe(cut, quiet=True)
    finally:
        training_run.train = train
    assert run_recipe(cut, quiet=True)["losses"] == whole["losses"]
