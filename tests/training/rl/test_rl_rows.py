"""Rows and recipes of preferences and rewards: what is refused before a model is loaded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer, RecordedDraft
from reverse.errors import DataError, MissingFileError, RequestError
from reverse.training.recipes.recipe import as_settings, load_recipe
from reverse.training.rl.grpo import OUTCOMES, make_reward_functions
from reverse.training.rl.rewards import PRESETS, REWARDS
from reverse.training.rl.rl_rows import make_dataset, read_rows
from reverse.training.rl.trl_setup import check_recipe
from reverse.training.views.grpo_views import view_prompts


def say(role, text, pictures=0):
    return {"role": role, "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}


PAIR = {
    "prompt": [say("user", "How many?", 1)],
    "chosen": [say("assistant", "3")],
    "rejected": [say("assistant", "4")],
    "images": ["1.png"],
}
QUESTION = {
    "prompt": [say("user", "How many?", 1)], "images": ["1.png"], "answers": ["3"], "kind": "number",
    "choices": [], "tolerance": 0.0, "unit": "", "pass_rate": 0.5,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    return tmp_path


def read(folder, rows, kind="dpo", **settings):
    path = folder / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return read_rows(path, folder, kind=kind, image_token="<image>", **settings)


BAD = {
    "not json": ("{\n", "JSON|Expecting"),
    "no pictures": (PAIR | {"images": []}, "images"),
    "a picture without a place": (
        PAIR | {"prompt": [say("user", "How many?")]},
        "0 places for pictures and 1",
    ),
    "a place without a picture": (PAIR | {"prompt": [say("user", "?", 2)]}, "2 places for pictures and 1"),
    "a picture that is not there": (PAIR | {"images": ["2.png"]}, "no picture '2.png'"),
    "a picture outside": (PAIR | {"images": ["../1.png"]}, "leaves"),
    "a picture of the text": (PAIR | {"chosen": [say("assistant", "3 <image>")]}, "holds <image>"),
    "no preference": (PAIR | {"chosen": PAIR["rejected"]}, "the same"),
    "an answer in the prompt": (
        PAIR | {"prompt": [say("user", "?", 1), say("assistant", "3")]},
        "must be user",
    ),
    "two turns chosen": (PAIR | {"chosen": [say("assistant", "3"), say("user", "4")]}, "chosen"),
    "an unknown role": (PAIR | {"prompt": [say("critic", "?", 1)]}, "role"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_pair_that_cannot_be_trained_is_refused(kind, folder):
    """TRL would fail hours later, or train something else."""
    row, reason = BAD[kind]
    with pytest.raises(DataError, match=rf"rows.jsonl, line 2: .*({reason}).*data.skip_bad=true"):
        read(folder, [PAIR, row])
    rows = read(folder, [PAIR, row, PAIR], skip_bad=True)
    assert len(rows) == 2 and rows.left_out == {"cannot be trained": 1} and rows.bad[0].startswith("line 2: ")
    assert rows[1]["images"][0].size == (32, 32)


def test_questions_are_kept_by_gold_answer_and_pass_rate(folder):
    """Groups of equal rewards teach nothing, and an answer key that cannot be read pays at random."""
    rates = [None, 0.0, 0.05, 0.1, 0.5, 0.9, 1.0]
    rows = read(folder, [QUESTION | {"pass_rate": rate} for rate in rates], "grpo", pass_rates=(0.1, 0.9))
    assert [rows[k]["pass_rate"] for k in range(len(rows))] == [None, 0.1, 0.5, 0.9]
    assert rows.left_out == {"pass rate outside of the band": 3}
    with pytest.raises(DataError, match="cannot be read as number"):
        read(folder, [QUESTION | {"answers": ["several"]}], "grpo")
    with pytest.raises(DataError, match=r"no row that can be trained: pass rate outside of the band \(1\)"):
        read(folder, [QUESTION | {"pass_rate": 1.0}], "grpo", pass_rates=(0.1, 0.9))
    with pytest.raises(DataError, match="it is empty"):
        read(folder, [], "grpo")
    with pytest.raises(MissingFileError, match="reverse data view --as grpo"):
        read_rows(folder / "none.jsonl", folder, kind="grpo", image_token="<image>")
    assert len(read(folder, [QUESTION] * 5, "grpo", limit=2)) == 2


def test_the_view_tells_the_pass_rate():
    """The band of a recipe would find nothing to compare with."""
    drafts = tuple(
        RecordedDraft(text=text, verdict=verdict) for text, verdict in [("3", "right"), ("4", "wrong")]
    )
    record = DraftRecord(
        id="q", question="?", images=("1.png",), gold=GoldAnswer(kind="number", answers=("3",)), drafts=drafts
    )
    assert view_prompts(record)[0]["pass_rate"] == 0.5
    assert view_prompts(record.model_copy(update={"drafts": ()}))[0]["pass_rate"] is None


def test_a_dataset_opens_pictures_when_it_is_asked(folder):
    """All pictures would stand in memory, or columns that rewards need would be lost."""
    dataset = make_dataset(read(folder, [QUESTION, QUESTION | {"answers": ["7"]}], "grpo"))
    assert len(dataset) == 2 and dataset[1]["answers"] == ["7"]
    (picture,) = dataset[0]["images"]
    assert picture.mode == "RGB" and dataset[0]["prompt"] == QUESTION["prompt"]
    assert [row["kind"] for row in dataset.select([1, 0])] == ["number", "number"]


texts = st.sampled_from(["<answer>3</answer>", "4", "", "<think>a</think><answer>4</answer>", "<SPAN>3</CN>"])


@given(st.lists(texts, min_size=1, max_size=6), st.sampled_from(sorted(PRESETS)))
def test_trl_gets_every_reward_by_its_name(said, preset):
    """The log would show one sum, and nobody would see which reward is gamed."""
    functions = make_reward_functions(PRESETS[preset])
    assert [each.__name__ for each in functions] == list(REWARDS)
    columns = {
        name: [QUESTION[name]] * len(said) for name in ("answers", "kind", "choices", "tolerance", "unit")
    }
    logged = {}
    turns = [[{"role": "assistant", "content": text}] for text in said]
    for each in functions:
        amounts = each(completions=turns, prompts=[], log_metric=logged.__setitem__, **columns)
        assert amounts == each(completions=said, **columns) and len(amounts) == len(said)
    assert logged.pop("phrases/un_share") == 0
    assert set(logged) == {f"outcome/{each}" for each in OUTCOMES}
    assert sum(logged.values()) == pytest.approx(1)


def test_completions_that_reject_phrases_are_told():
    """GRPO would unlearn the verdicts of a tagged model, and nobody would see it."""
    columns = {name: [QUESTION[name]] * 2 for name in ("answers", "kind", "choices", "tolerance", "unit")}
    logged = {}
    functions = {each.__name__: each for each in make_reward_functions(PRESETS["plain"])}
    with pytest.warns(UserWarning, match="grpo.rollout=keep_phrases"):
        paid = functions["final_answer"](
            completions=["<SPAN>3</UN>", "3"], log_metric=logged.__setitem__, **columns
        )
    assert logged["phrases/un_share"] == 0.5 and paid[0] == paid[1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["tune.tokens=true"], "train the tokens by kind=sft first"),
        (["tune.projector=true"], "set tune.projector=false"),
        (["data.hint_share=0.5"], "data.hint_share=0.5 has no effect"),
        (["compute.packing=true"], "compute.packing=True has no effect"),
        (["loss.confidence_weight=2"], "loss.confidence_weight=2.0 has no effect"),
        (["compute.parallel=fsdp"], "take ddp or zero2"),
        (["compute.parallel=zero3"], "take ddp or zero2"),
        (["tune.method=full"], "needs tune.method=lora"),
    ],
)
def test_settings_that_trl_would_not_follow_are_refused(settings, reason):
    """A setting would be read, and silently not be done."""
    check_recipe(load_recipe("r3v_dpo"))
    with pytest.raises(RequestError, match=reason):
        check_recipe(load_recipe("r3v_dpo", settings))


def test_rewards_that_cannot_hold_are_refused():
    """A run would leave out every question, or train on completions of another distribution."""
    check_recipe(load_recipe("srpo_grpo"))
    for settings, reason in [
        (["grpo.pass_rate_low=0.95"], "pass_rate_low 0.95 is above"),
        (["grpo.rollout=checked"], r"set optim.lr=0"),
        (["grpo.beta=0.01"], r"or grpo.beta=0"),
    ]:
        with pytest.raises(RequestError, match=reason):
            check_recipe(load_recipe("srpo_grpo", settings))
    check_recipe(load_recipe("srpo_grpo", ["grpo.rollout=checked", "optim.lr=0"]))
    with pytest.raises(RequestError, match="dpo has no effect on a run of kind grpo: set kind=dpo"):
        load_recipe("srpo_grpo", ["dpo.beta=0.2"])
    with pytest.raises(RequestError, match=r"grpo\.rewards must be one of default, paper, upstream, plain"):
        load_recipe("srpo_grpo", ["grpo.rewards=best"])


def test_recipes_of_the_four_systems_have_the_published_numbers():
    """Not the hyper-parameters of R3V, LLaVA-SCo, SRPO and TSST."""
    r3v, dpo, sco, cold, grpo, tsst = (
        load_recipe(name)
        for name in ("r3v_sft", "r3v_dpo", "sco_sft", "srpo_cold_start", "srpo_grpo", "tsst_policy")
    )
    assert (r3v.optim.lr, r3v.optim.schedule, r3v.optim.beta2) == (3e-5, "constant", 0.98)
    assert (r3v.optim.global_batch, r3v.optim.epochs, r3v.data.max_length) == (64, 3, 2048)
    assert (dpo.kind, dpo.optim.lr, dpo.dpo.beta) == ("dpo", 1e-5, 0.1)
    for each in (r3v, dpo, tsst):
        assert (each.tune.method, each.tune.rank, each.tune.alpha, each.tune.dropout) == (
            "lora",
            128,
            256,
            0.05,
        )
        assert not each.tune.projector
    assert (sco.optim.lr, sco.optim.epochs, sco.optim.global_batch) == (1e-5, 3, 8)
    assert (cold.optim.lr, cold.optim.epochs, cold.data.max_length, cold.tune.method) == (
        1e-5,
        1,
        4096,
        "full",
    )
    assert (grpo.optim.lr, grpo.optim.global_batch, grpo.optim.epochs, grpo.tune.vision) == (
        1e-6,
        128,
        3,
        False,
    )
    settings = grpo.grpo
    assert (settings.generations, settings.temperature, settings.max_new_tokens, settings.beta) == (
        8,
        1.0,
        2048,
        0.0,
    )
    assert (settings.pass_rate_low, settings.pass_rate_high, settings.rewards) == (0.1, 0.9, "paper")
    assert (tsst.optim.lr, tsst.optim.schedule, tsst.optim.warmup, tsst.optim.weight_decay) == (
        2e-5, "cosine", 0.1, 0.05,
    )  # fmt: skip
    assert (tsst.optim.epochs, tsst.optim.global_batch) == (3, 64)
    value = load_recipe("value_head")
    assert (value.optim.lr, value.optim.epochs, value.optim.weight_decay, value.tune.rank) == (
        2e-5,
        1,
        0.05,
        128,
    )
    assert "grpo" not in as_settings(r3v) and "dpo" not in as_settings(grpo)
