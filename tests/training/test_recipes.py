"""Recipes: read strictly, shipped with the published numbers, and usable from the command."""

import json

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.training.optim.schedule import Schedule
from reverse.training.recipes.recipe import Recipe, as_yaml, load_recipe, recipe_names

LEAST = "model: m\noutput: o\ndata: {records: r}\n"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (LEAST + "optim: {leaning_rate: 1}", "unknown key 'optim.leaning_rate'"),
        (LEAST + "optim: {batchs: 1}", r"did you mean optim\.batch\?"),
        (LEAST + "lr: 1", r"did you mean optim\.lr\?"),
        (LEAST + "paralel: ddp", r"did you mean compute\.parallel\?"),
        (LEAST + "optim: {batch: 1.5}", r"optim\.batch must be of type int, got 1\.5"),
        (LEAST + "optim: {batch: true}", "must be of type int, got True"),
        (LEAST + "tune: {tokens: 1}", "must be of type bool"),
        (LEAST + "tune: lora", "tune must hold keys and values"),
        ("model: m\noutput: o", "lacks data"),
        ("model: m\noutput: o\ndata: {images: i}", r"lacks data\.records"),
        ("- model", "must hold keys and values"),
        ("model: [", "is not YAML"),
        (LEAST + "optim: {lr: 1e-5}\noptim: {steps: 2}", r"'optim' stands twice, in lines 4 and 5"),
        (LEAST + "optim: {lr: 1e-5, lr: 1e-4}", r"'lr' stands twice"),
    ],
)
def test_faults_are_named(written, text, match):
    """A misspelt key would be a default, and a week of training another than was meant."""
    with pytest.raises(ValueError, match=match):
        load_recipe(written(text))


def test_a_file_that_is_no_text_is_named(tmp_path):
    """The error would speak of a byte, and not of the file."""
    (tmp_path / "model.yaml").write_bytes(b"\x89PNG\x00")
    with pytest.raises(ValueError, match=r"model\.yaml, line 1: byte 0x89 is not UTF-8"):
        load_recipe(str(tmp_path / "model.yaml"))


def test_settings_go_over_the_file(written):
    """`--set` would be dropped, or typed as text."""
    path = written(LEAST + "optim: {lr: 2e-5, steps: 7}")
    recipe = load_recipe(
        path,
        [
            "optim.lr=1e-4",
            "tune.method=lora",
            "optim.steps=none",
            "compute.save_dtype=none",
            "data.limit=5",
            "log.report_to=wandb",
        ],
    )
    assert (recipe.optim.lr, recipe.optim.steps, recipe.data.limit) == (1e-4, None, 5)
    assert recipe.compute.save_dtype is None and recipe.tune.quantize == "none"
    assert recipe.tune.method == "lora" and recipe.log.report_to == "wandb" and recipe.optim.batch == 8
    assert load_recipe(path).optim.lr == 2e-5
    for setting, match in (("optim.lr", "key=value"), ("optim.rl=1", "optim.lr"), ("optim=3", "unknown key")):
        with pytest.raises(ValueError, match=match):
            load_recipe(path, [setting])


def test_written_out_recipe_is_the_same(written):
    """`recipe.yaml` beside the weights would give another run."""
    for name in recipe_names():
        recipe = load_recipe(name)
        assert load_recipe(written(as_yaml(recipe))) == recipe


def test_shipped_recipes_have_the_published_numbers():
    """Not the paper's hyper-parameters (appendix E.1)."""
    names = ["llava_more_lora", "llava_v15_lora", "qwen25_vl_3b_full"]
    more, first, qwen = (load_recipe(name) for name in names)
    for recipe, lr in ((first, 2e-4), (more, 1e-4)):
        tune, optim = recipe.tune, recipe.optim
        assert (tune.method, tune.rank, tune.alpha, tune.dropout) == ("lora", 128, 256, 0.05)
        assert tune.tokens and tune.projector and recipe.data.max_length == 2048
        assert (optim.lr, optim.projector_lr, optim.weight_decay, optim.warmup) == (lr, 2e-5, 0.0, 0.03)
        assert (optim.global_batch, optim.epochs, recipe.data.hint_share) == (128, 1, 0.2)
    assert (qwen.tune.method, qwen.tune.vision, qwen.tune.projector) == ("full", False, True)
    assert (qwen.optim.lr, qwen.optim.weight_decay, qwen.optim.global_batch) == (5e-5, 0.1, 128)
    assert (qwen.data.min_pixels, qwen.data.max_pixels) == (512 * 28**2, 1280 * 28**2)
    assert isinstance(qwen, Recipe)


def test_command_says_what_is_wrong(tmp_path):
    """A traceback, or hours of loading before a misspelt path is noticed."""
    call = CliRunner().invoke
    assert call(app, ["train", "--list"]).output.count("\n") == len(recipe_names())
    shown = call(app, ["train", "llava_v15_lora", "--set", "optim.lr=3", "--show"])
    assert "lr: 3.0" in shown.output and shown.exit_code == 0
    records = tmp_path / "records.json"
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    records.write_text(json.dumps([{"id": "1", "conversations": said}]))
    here = ["llava_v15_lora", "--set", f"data.records={records}", "--set", f"data.images={tmp_path}"]
    here += ["--set", "model=tiny-llava", "--set", "data.pad_to_square=false"]
    for arguments, match in (
        (["llava_v15"], "llava_v15_lora"),
        ([], "name a recipe"),
        (["llava_v15_lora", "--set", f"data.records={tmp_path}/none.json"], "no such file"),
        (["llava_v15_lora", "--set", "compute.parallel=ddp"], "torchrun"),
        (["llava_v15_lora", "--set", "tune.quantize=nf5"], "nf4"),
        ([*here, "--set", "compute.attention=flex"], "sdpa"),
        ([*here, "--set", "compute.weights=int8"], "bfloat16"),
        ([*here, "--set", "data.min_pixels=100", "--set", "compute.weights=float32"], "Qwen2.5-VL"),
        ([*here, "--set", "optim.batch=3"], "not a multiple"),
    ):
        result = call(app, ["train", *arguments])
        assert result.exit_code == 2 and match in " ".join(result.output.split()), result.output


def test_reporter_that_is_not_installed_is_named(monkeypatch, tmp_path):
    """The run would fail at its first line of progress, or report to nobody."""
    from reverse.training.recipes import settings_check
    from reverse.training.recipes.settings_check import check_settings
    from reverse.training.sft import SFTConfig

    monkeypatch.setattr(settings_check, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install trackio"):
        check_settings(SFTConfig(str(tmp_path), batch=1, report_to="trackio"))
    with pytest.raises(ValueError, match="must be one of"):
        check_settings(SFTConfig(str(tmp_path), batch=1, report_to="comet"))
    with pytest.raises(ValueError, match="not a multiple"):
        check_settings(SFTConfig(str(tmp_path), batch=3, global_batch=8))


@pytest.mark.parametrize(
    "setting",
    [
        "data.limit=0",
        "data.limit=-5",
        "data.hint_share=5",
        "optim.steps=0",
        "optim.batch=0",
        "optim.warmup=1",
        "optim.beta2=2",
    ],
)
def test_values_out_of_range_are_refused(setting):
    """A run of no steps would be one over all data, or half of the answers carry five hints."""
    key = setting.partition("=")[0]
    with pytest.raises(ValueError, match=rf"{key} must be (at least|at most|below) 1"):
        load_recipe("llava_v15_lora", [setting])


def test_an_output_inside_a_file_is_refused_first(tmp_path):
    """The model would be loaded and all records checked before a bare "File exists"."""
    from reverse.training.training_run import run_recipe

    records = tmp_path / "r.json"
    records.write_text("[]")
    given = [f"output={records}/x", f"data.records={records}", f"data.images={tmp_path}", "model=tiny-qwen"]
    with pytest.raises(FileExistsError, match=r"output: .*r\.json, a file: name another folder"):
        run_recipe(load_recipe("qwen25_vl_3b_full", given))


def test_a_constant_rate_stays_where_it_rose_to():
    """R3V's recipe would train at half its rate, or without a warm-up."""
    rate = Schedule(100, warmup=0.1, shape="constant")
    assert rate(5) == pytest.approx(0.5) and {rate(step) for step in (10, 50, 99)} == {1.0}
    assert Schedule(100, warmup=0.1)(55) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="schedule must be one of cosine, constant, got 'linear'"):
        Schedule(100, shape="linear")


def test_a_recipe_of_another_kind_is_not_trained_on_records():
    """Pairs of preferences would be read as records."""
    from reverse.training.training_run import run_recipe

    with pytest.raises(ValueError, match="the recipe's kind is dpo"):
        run_recipe(load_recipe("r3v_dpo"))
