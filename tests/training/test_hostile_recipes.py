"""Recipes that nobody means well with: refused by a stated limit, in a short message, at once."""

import time

import pytest

from reverse.training.recipes.recipe import as_yaml, load_recipe, recipe_names
from reverse.training.recipes.recipe_yaml import MAX_BYTES, parse_recipe_yaml, show_value

LEAST = "model: m\noutput: o\ndata: {records: r}\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


HOSTILE = {
    "laughs": (LAUGHS, "line 2: .a repeats a whole list"),
    "sections repeated": (LEAST + "optim: &o {lr: 1}\nloss: *o\n", r"line 5: \*o repeats"),
    "merged": (LEAST + "x: &x {lr: 1}\noptim:\n  <<: *x\n", "repeats a whole list or section"),
    "deep brackets": (LEAST + "tune: " + "[" * 30_000, "more than 8 deep"),
    "deep sections": ("".join(f"{' ' * k}a:\n" for k in range(300)), "more than 8 deep"),
    "deep keys": ("? " * 5000 + "a", "more than 8 deep|is not YAML"),
    "large": (LEAST + "# " + "x" * MAX_BYTES, "larger than 65,536 bytes"),
    "spaces": (LEAST + " " * 60_000 + "x: [", "is not YAML"),
    "quotes": ('"' * 60_001, "is not YAML|must hold keys"),
    "colons": (": " * 30_000, "is not YAML|deep"),
    "anchors": ("".join(f"&a{k} " for k in range(9000)), "is not YAML"),
    "stars": ("- *" * 20_000, "is not YAML|deep"),
    "pipes": (LEAST + "seed: |\n" + " x\n" * 20_000, "seed must be of type int"),
    "percent": ("%" * 60_000, "is not YAML"),
    "long key": (LEAST + "k" * 50_000 + ": 1", "is not YAML|unknown key"),
    "long keys": (LEAST + "".join(f"? {'k' * 900}{k}\n: 1\n" for k in range(60)), "unknown key"),
    "long value": (LEAST + "optim: {lr: " + "y" * 50_000 + "}", "must be of type float"),
    "long list": (LEAST + f"optim: {list(range(9000))}", "optim must hold keys and values"),
    "python": (LEAST + "seed: !!python/object/apply:os.system [ls]", "is not YAML"),
    "no date": (LEAST + "seed: 2024-99-99", "cannot be read|must be of type"),
    "digits": (LEAST + "seed: " + "9" * 5000, "cannot be read|must be"),
    "octal": (LEAST + "optim: {batch: 010}", "not a plain number"),
    "base sixty": (LEAST + "optim: {steps: 1:30}", "not a plain number"),
    "base sixty with a point": (LEAST + "optim: {lr: 1:30.5}", "not a plain number"),
    "latin-1": (LEAST.encode() + b"# caf\xe9\n", "line 4: byte 0xe9 is not UTF-8"),
    "utf-16": (LEAST.encode("utf-16"), "UTF-16"),
    "nul": (LEAST + 'x: "\\0"', "unknown key"),
    "key is a list": (LEAST + "? [a, b]\n: 1", "is not YAML|unknown key"),
    "key is a number": (LEAST + "17: 1", "unknown key '17'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes_are_refused(written, name):
    """A file of a few lines would take all memory, minutes, or a screen of message."""
    content, match = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(ValueError, match=match) as caught:
        load_recipe(written(content))
    assert time.process_time() - began < 20  # not a measure: an exponential reader would never end
    assert len(str(caught.value)) < 1200, str(caught.value)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "inf", "Infinity", "1e999", "9" * 400])
@pytest.mark.parametrize(
    "key", ["optim.lr", "optim.epochs", "optim.clip", "loss.confidence_weight", "tune.alpha"]
)
def test_numbers_are_finite(written, key, value):
    """A rate of infinity passes every lower bound."""
    with pytest.raises(ValueError, match=rf"{key} must be a finite number|{key} must be"):
        load_recipe("llava_v15_lora", [f"{key}={value}"])
    section, name = key.split(".")
    with pytest.raises(ValueError, match=rf"{key} must be"):
        load_recipe(written(LEAST + f"{section}: {{{name}: {value}}}"))


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("seed=-1", "seed must lie between 0 and"),
        ("seed=4294967296", "seed must lie between 0 and"),
        (f"optim.steps={10**30}", "optim.steps must be at most"),
        ("optim.steps=1e30", "optim.steps must be"),
        ("optim.steps=nan", "optim.steps must be"),
        ("optim.steps=.nan", "optim.steps must be"),
        ('output="a\\0b"', "output holds control characters"),
        ('output="a\\nb"', "output holds control characters"),
        ('model="\\ud83d"', "model holds control characters or half a character|not YAML"),
        ("output=' '", "output is empty"),
        ("data.records=''", "data.records is empty"),
        ("x" * 90_000 + "=1", "unknown key"),
        ("x" * 90_000, "--set takes key=value"),
        ("output=" + "[" * 70_000, "65,536 at most"),
        ("output=" + "[" * 9_000, "more than 8 deep"),
        ("output=[a", "is not YAML"),
        ("output=*a", "is not YAML"),
    ],
    ids=range(17),
)
def test_settings_are_refused(setting, match):
    """`--set` would get around what the file is held to."""
    with pytest.raises(ValueError, match=match) as caught:
        load_recipe("llava_v15_lora", [setting])
    assert len(str(caught.value)) < 1200


def test_what_users_write_is_read(written):
    """A byte-order mark of an editor, a value used twice or a name in other letters would be refused."""
    text = (
        "\ufeff"
        + LEAST.replace("model: m", "model: &m 模型/ü 🎈")
        + "optim: {lr: &r 1e-4, projector_lr: *r}\n"
    )
    recipe = load_recipe(written(text), ["seed=+7", "optim.steps=1_000"])
    assert (recipe.model, recipe.seed, recipe.optim.steps) == ("模型/ü 🎈", 7, 1000)
    assert recipe.optim.lr == recipe.optim.projector_lr == 1e-4
    for name in recipe_names():
        recipe = load_recipe(name)
        assert load_recipe(written(as_yaml(recipe))) == recipe


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\n" * 300, ""], ids=["long", "nul", "lines", "empty"])
def test_names_that_no_recipe_has(name):
    """The name would be echoed as it is, or end in an error of the system."""
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        load_recipe(name)
    assert len(str(caught.value)) < 600


def test_shown_values_are_short():
    """One value would fill the terminal, or stop it."""
    for value in (10**9000, "x" * 10**6, [[[[1]]]] * 999, {"a": "b" * 9999}, "\ud83d"):
        assert len(show_value(value)) < 400 and show_value(value).encode()


def test_a_megabyte_is_refused_by_its_size():
    """It would be read for seconds before it is refused."""
    with pytest.raises(ValueError, match="65,536 at most"):
        parse_recipe_yaml("- x\n" * 250_000, "x.yaml")
