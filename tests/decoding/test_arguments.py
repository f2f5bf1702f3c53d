"""Arguments of the public calls: what would do nothing is refused, and before any expensive work."""

import pytest

import reverse
from tests.decoding.worlds import talkative


class Unread:
    """An iterable of requests that must not be read."""

    def __iter__(self):
        return self

    def __next__(self):
        pytest.fail("a request was read")


@pytest.fixture(scope="module")
def world():
    model, processor = talkative("llava")
    return model, processor


@pytest.fixture
def idle(world, monkeypatch):
    """(model, processor) whose pictures must not be opened, and whose weights not be used."""
    model, processor = world
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    monkeypatch.setattr(
        type(processor), "__call__", lambda *args, **kwargs: pytest.fail("a picture was read")
    )
    return world


WRONG = {
    "threshold": ({"threshold": 3.0}, r"threshold must lie in \(0, 1\], got 3"),
    "mode": ({"mode": "plane"}, "mode must be one of resample, plain,.* got 'plane'"),
    "seed": ({"seed": 2**70}, "seed must lie between"),
    "temperature alone": ({"temperature": 0.7}, r"temperature=0\.7 is that of sampling.*do_sample=True"),
    "temperature, negative": ({"temperature": -1.0, "do_sample": True}, "at least 0, got -1"),
    "temperature, NaN": ({"temperature": float("nan"), "do_sample": True}, "at least 0, got nan"),
    "temperature, zero": ({"temperature": 0, "do_sample": True}, "above 0 with do_sample=True, got 0: leave"),
    "temperature, text": ({"temperature": "0.7", "do_sample": True}, "must be a number, got '0.7'"),
    "do_sample": ({"do_sample": "yes"}, "do_sample must be True or False, got 'yes'"),
    "generation": ({"generation": ["repetition_penalty"]}, "generation must be a mapping"),
    "length": ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
    "hints": ({"hints": -1}, "hints must be"),
    "backend": ({"backend": "fast"}, "backend must be .*got 'fast'"),
    "stop": ({"stop_strings": [""]}, "stop_strings"),
    "near": ({"treshold": 0.1}, r"unknown setting treshold: did you mean threshold\?"),
    "near an argument": ({"max_tokens": 5}, r"unknown setting max_tokens: did you mean max_new_tokens\?"),
    "near a picture": ({"image": "a.png"}, r"unknown setting image: did you mean images\?"),
    "near a stream": ({"on_exhaust": "drop"}, r"did you mean on_exhausted\?"),
    "of model.generate()": (
        {"repetition_penalty": 1.2},
        r"option of model\.generate\(\), use generation=\{'repetition_penalty': \.\.\.\}, or "
        r"model\.generate\(custom_generate=reverse\.retrospective\(processor\), repetition_penalty=\.\.\.\)",
    ),
    "beams": ({"num_beams": 4}, r"num_beams: it is an option of model\.generate"),
    "nowhere near": ({"zzz": 1}, "unknown setting zzz: ResamplingConfig has threshold, "),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", ["generate", "generate_many", "stream"])
def test_a_wrong_argument_is_refused_before_any_work(call, wrong, idle):
    """Pictures would be opened, and prompts encoded, for a call that cannot be answered."""
    settings, words = WRONG[wrong]
    with pytest.raises((TypeError, ValueError), match=words):
        if call == "generate":
            reverse.generate(*idle, "/nowhere.png", "?", **settings)
        elif call == "stream":
            reverse.stream(*idle, "/nowhere.png", "?", **settings)
        else:
            reverse.generate_many(*idle, Unread(), **settings)


def test_numbers_that_do_not_match_are_refused_before_any_work(idle):
    """The first pictures would be answered before the seeds are counted."""
    pictures = ["/a.png", "/b.png"]
    for call in (reverse.generate, reverse.stream):
        with pytest.raises(ValueError, match="got 1 seeds for 2 requests"):
            call(*idle, pictures, "?", seed=[1])
        with pytest.raises(ValueError, match="got 2 images for 3 prompts"):
            call(*idle, pictures, ["a", "b", "c"])


def test_the_drop_in_names_what_belongs_to_generate(world):
    """`retrospective(processor, max_new_tokens=5)` would list all settings and help nobody."""
    words = r"max_new_tokens: it is an option of model\.generate\(\), use model\.generate\(custom_generate="
    with pytest.raises(TypeError, match=words):
        reverse.retrospective(world[1], max_new_tokens=5)
    with pytest.raises(TypeError, match=r"did you mean seeds\?"):
        reverse.retrospective(world[1], seed_s=[1])


def test_a_temperature_that_changes_nothing_is_no_error(world):
    """The default, given by name, and 0 for greedy would be refused."""
    options = {"prompt": "?", "threshold": 0.5, "max_new_tokens": 3}
    plain = reverse.generate(*world, **options).ids
    for temperature in (0, 0.0, 1, 1.0):
        assert reverse.generate(*world, temperature=temperature, **options).ids == plain


def test_a_model_without_a_head_is_refused(world):
    """The inner model has a configuration, but nothing that generates."""
    model, processor = world
    with pytest.raises(TypeError, match="LlavaModel has no language-model head: give the LlavaForCond"):
        reverse.generate(model.model, processor, prompt="?")
