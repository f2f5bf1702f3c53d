"""A release of transformers that behaves in another way than assumed ends in an error, never in nonsense."""

import inspect
import logging
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StaticCache
from transformers.generation import logits_process
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typer.testing import CliRunner

import reverse
from reverse import compatibility
from reverse.cli import app
from reverse.compatibility import IncompatibleLibraryError, format_supported_range, pip_requirement
from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import Prompt, SegmentParams
from reverse.decoding.preparing import caller_options, caller_processors
from reverse.decoding.verifier import NO_TAGS

ROOT = Path(__file__).resolve().parents[2]
RANGE = f"supported is transformers {format_supported_range('transformers')}"


@pytest.fixture
def changed(tiny_llava, monkeypatch, picture):
    """`changed(forward, **names)`: generate() on a model whose class has another forward.

    The signature is the old one but for `names`, arguments that are renamed (old="new").
    """
    model, processor = tiny_llava
    original = type(model).forward
    own = compat.cache_argument(model)

    def call(body, backend="hf", **names):
        def forward(self, *args, **kwargs):
            return original(self, *args, **body(own, kwargs))

        signature = inspect.signature(original)
        renamed = [p.replace(name=names.get(p.name, p.name)) for p in signature.parameters.values()]
        forward.__signature__ = signature.replace(parameters=renamed)
        if backend == "cuda_graph":  # it refuses other classes; here it is shown one that it would take
            weights = "reverse.decoding.backends.cuda_graph.weights"
            monkeypatch.setattr(f"{weights}.find_modification", lambda model: None)
        monkeypatch.setattr(model, "__class__", type("Changed", (type(model),), {"forward": forward}))
        return reverse.generate(
            model,
            processor,
            picture(),
            "Describe this image.",
            max_new_tokens=4,
            threshold=0.5,
            backend=backend,
        )

    return call


def test_a_renamed_cache_argument_is_an_error(changed):
    """The model would take no cache and go on without context, with exit code 0."""
    with pytest.raises(IncompatibleLibraryError, match=RANGE) as caught:
        changed(lambda name, kwargs: kwargs, cache="kv_store", past_key_values="kv_store")
    assert "Changed.forward takes no cache under the names cache, past_key_values" in str(caught.value)
    assert pip_requirement("transformers") in str(caught.value)


@pytest.mark.parametrize("backend", ["hf", "cuda_graph"])
def test_a_cache_that_the_prefill_does_not_fill_is_an_error(changed, backend):
    """An argument that is taken and not used would decode without the prompt and the picture."""

    def without(name, kwargs):
        return kwargs | {name: None}

    with pytest.raises(
        IncompatibleLibraryError, match="tokens were fed to each of 1 rows the cache holds nothing"
    ):
        changed(without, backend)


def test_a_cache_that_a_step_does_not_grow_is_an_error(changed):
    """Only steps would lose their context, and the answer go astray after the first token."""

    def first_alone(name, kwargs):
        return kwargs if kwargs["input_ids"].shape[1] > 1 else kwargs | {name: DynamicCache()}

    with pytest.raises(IncompatibleLibraryError, match=r"the cache holds shape \(1, .*" + RANGE):
        changed(first_alone)


def started(model):
    """A backend with a sequence of three ids that has decoded one, and the sequence."""
    backend = HfBackend(model, max_sequences=2)
    (sequence,) = backend.add([Prompt([5, 6, 7])])
    backend.start(sequence, SegmentParams(8, NO_TAGS, masks_tags=False))
    backend.step()
    return backend, sequence


def test_a_step_of_several_ids_is_checked_too(tiny_llava, monkeypatch):
    """A cache that keeps one id of several would be found at the next row that catches up, or never."""
    backend, sequence = started(tiny_llava[0])
    backend.set_tokens(sequence, [5, 6, 7, 8, 9])
    backend.start(sequence, SegmentParams(8, NO_TAGS, masks_tags=False))

    def forward(model, cache, *args, **kwargs):
        logits = original(model, cache, *args, **kwargs)
        cache.layers[-1].keys = cache.layers[-1].keys[:, :, 1:]
        return logits

    original = compat.forward
    monkeypatch.setattr(compat, "forward", forward)
    with pytest.raises(IncompatibleLibraryError, match="after 5 tokens were fed"):
        backend.step()


def test_a_step_checks_that_the_cache_believes_in_its_length(tiny_llava):
    """A layer that counts its tokens apart from its keys would mask the wrong ones after a compaction."""
    backend, sequence = started(tiny_llava[0])
    backend.set_tokens(sequence, [5, 6, 8])
    backend.start(sequence, SegmentParams(8, NO_TAGS, masks_tags=False))
    backend._cache._cache.layers[0].get_seq_length = lambda: 3
    with pytest.raises(IncompatibleLibraryError, match="the cache holds shape 3 as length"):
        backend.step()


class Rope:
    """A model whose `get_rope_index()` gives what it is told to give."""

    def __init__(self, *answer):
        self.base_model, self.answer = self, answer

    def get_rope_index(self, *args, **kwargs):
        return self.answer


@pytest.mark.parametrize(
    "positions, offsets",
    [(torch.zeros(4, 1, 4), torch.zeros(1, 1)), (torch.zeros(3, 1, 4), torch.zeros(2, 1))],
)
def test_other_multimodal_positions_are_an_error(positions, offsets):
    """Rotary positions would be counted from the wrong row, and every token stand at a wrong place."""
    ids = torch.tensor([[1, 2, 3, 4]])
    with pytest.raises(IncompatibleLibraryError, match=r"get_rope_index\(\) gave shapes"):
        compat.build_positions(Rope(positions, offsets), ids, torch.ones_like(ids), 2, [(1, 2, 2)])


def test_a_model_without_encoder_outputs_is_an_error():
    """A TypeError about an argument would say nothing of versions."""

    class Bare(torch.nn.Module):
        def forward(self, input_ids):
            """Pictures have no place here."""

    with pytest.raises(
        IncompatibleLibraryError, match="Bare.forward does not take mm_encoder_outputs.*" + RANGE
    ):
        compat.encode_pictures(Bare(), [{"pixel_values": torch.zeros(1)}])


def test_the_name_of_the_cache_is_read_below_wrappers(tiny_llava):
    """Wrappers take any arguments, so their own signature tells nothing."""
    model, _ = tiny_llava
    name = compat.cache_argument(model)
    assert name in inspect.signature(type(model).forward).parameters
    wrapper = type("DataParallel", (torch.nn.Module,), {"forward": lambda self, *args, **kwargs: None})()
    wrapper.module = model
    assert compat.cache_argument(wrapper) == name


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_of_the_callers_own_is_refused(drop_in, tiny_any, name):
    """It would stay empty, and the next call that continues from it lose the conversation."""
    text = tiny_any[0].config.get_text_config()
    refused = (
        r"not used by the model: \['cache'\]"  # by transformers itself, which does not know the name yet
    )
    with pytest.raises(ValueError, match=f"is a cache of the caller's own|{refused}"):
        drop_in(**{name: DynamicCache(config=text)})
    with pytest.raises(ValueError, match=f"a cache of StaticLayer cannot be rewound|{refused}"):
        drop_in(**{name: StaticCache(config=text, max_cache_len=512)})


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_refused_under_both_of_its_names(tiny_llava, name):
    """The name changed with a release of transformers, and the check would look at an empty place."""
    text = tiny_llava[0].config.get_text_config()
    own, held = DynamicCache(config=text), DynamicCache(config=text)
    own._is_user_defined = True
    heads, width = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
    for layer in range(text.num_hidden_layers):
        held.update(torch.zeros(1, heads, 3, width), torch.zeros(1, heads, 3, width), layer)
    for cache, message in (
        (own, f"{name} is a cache of the caller's own"),
        (held, f"{name} already holds 3 tokens: leave {name} out"),
        (torch.zeros(2), f"{name} must be left out, got a Tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            caller_options.check_request(GenerationConfig(), [], {name: cache})
    static = StaticCache(config=text, max_cache_len=512)
    with pytest.raises(
        ValueError, match="a cache of StaticLayer cannot be rewound: leave cache_implementation"
    ):
        caller_options.check_request(GenerationConfig(cache_implementation="static"), [], {name: static})


def test_a_cache_implementation_is_refused_by_its_name():
    """An offloaded cache would be made, left empty, and memory run out all the same."""
    for kind in ("offloaded", "quantized"):
        with pytest.raises(ValueError, match=f"cache_implementation='{kind}' cannot be rewound"):
            caller_options.check_request(GenerationConfig(cache_implementation=kind), [], {})


def test_sliding_windows_are_refused(tiny_llava, picture, monkeypatch):
    """A layer that forgets old tokens by itself cannot be rewound to them."""
    model, processor = tiny_llava
    text = model.config.get_text_config()
    kinds = ["sliding_attention"] * text.num_hidden_layers
    monkeypatch.setattr(text, "layer_types", kinds, raising=False)
    monkeypatch.setattr(text, "sliding_window", 8, raising=False)
    with pytest.raises(ValueError, match="its cache in DynamicSlidingWindowLayer, which cannot be rewound"):
        reverse.generate(model, processor, picture(), "Describe this image.", max_new_tokens=2, threshold=0.5)


def test_every_processor_of_transformers_is_known():
    """One that keeps a state would go on after a rewind with the state of text that is gone."""
    kinds = [
        name
        for name, kind in vars(logits_process).items()
        if inspect.isclass(kind)
        and issubclass(kind, logits_process.LogitsProcessor)
        and kind.__module__ == logits_process.__name__
    ]
    known = {*caller_processors._STATEFUL, *caller_processors._STATELESS, *caller_processors._WARPERS}
    ours = {kind.__name__ for kind in caller_processors._ENGINE_WARPERS}
    assert set(kinds) - known - ours == {"LogitsProcessor"}


def test_a_processor_of_a_later_transformers_is_refused():
    """Nobody has looked whether it keeps a state."""
    late = type(
        "LateLogitsProcessor", (logits_process.LogitsProcessor,), {"__module__": logits_process.__name__}
    )
    with pytest.raises(ValueError, match="LateLogitsProcessor is not known to this release"):
        caller_options.copy_processors(LogitsProcessorList([late()]), None, 1)


def test_a_processor_without_its_attributes_is_an_error():
    """An AttributeError from inside would not say what to install."""
    changed = logits_process.RepetitionPenaltyLogitsProcessor(2.0)
    del changed.prompt_ignore_length
    with pytest.raises(IncompatibleLibraryError, match="prompt_ignore_length.*" + RANGE):
        caller_options.copy_processors(LogitsProcessorList([changed]), None, 1)


def test_pyproject_has_the_supported_ranges():
    """pip would install what the error calls unsupported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(one for extra in extras for one in extra)]
    for library in compatibility.SUPPORTED:
        assert pip_requirement(library) in asked, library


def test_make_tests_the_ends_of_the_ranges():
    """A range would promise releases that nobody has run."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    oldest = makefile.split("OLDEST_RELEASES := ", 1)[1].splitlines()[0].split()
    newest = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for library, (first, last) in compatibility.SUPPORTED.items():
        assert f"{library}=={first}.0" in oldest
        assert any(line.startswith(f"{library}=={last}.") for line in newest)


def test_a_newer_version_gives_one_warning(monkeypatch, caplog):
    """A user would not know that nobody has tested this combination, or hear of it at every call."""
    monkeypatch.setattr(compatibility, "_find_version", {"transformers": "99.1.0.dev0", "peft": None}.get)
    compatibility.warn_of_newer_versions.cache_clear()
    with caplog.at_level(logging.WARNING, logger="reverse"):
        for _ in range(3):
            compatibility.warn_of_newer_versions()
    compatibility.warn_of_newer_versions.cache_clear()
    (line,) = caplog.messages
    assert "transformers 99.1.0.dev0 is newer than any that was tested (" in line and "pip install" in line


def test_supported_versions_give_no_warning(caplog):
    """A warning that comes always is not read."""
    compatibility.warn_of_newer_versions.cache_clear()
    compatibility.warn_of_newer_versions()
    assert not caplog.messages


@pytest.mark.parametrize("widths", [[2, 2], [2], [2, 3, 1]])
def test_encoded_pictures_that_do_not_fit_are_an_error(tiny_llava, widths):
    """A row would get the features of another row's picture."""
    model, _ = tiny_llava
    token = model.config.image_token_id
    ids = torch.tensor([[token + 1, token, token], [token] * 3])
    encoded = BaseModelOutputWithPooling(pooler_output=[torch.zeros(width, 4) for width in widths])
    with pytest.raises(IncompatibleLibraryError, match="pooler_output does not hold as many features"):
        caller_options.split_pictures_by_row(model, ids, {"mm_encoder_outputs": {"image": encoded}})


def test_a_command_says_it_in_one_line(monkeypatch):
    """`reverse demo` would print nonsense and exit with 0, or a traceback that names no version."""

    def other_cache(*args, **kwargs):
        raise IncompatibleLibraryError("transformers", "the cache holds nothing as keys of layer 0")

    monkeypatch.setattr(compat, "check_cache", other_cache)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: transformers ") and RANGE in result.stderr
    assert len(result.stderr.splitlines()) == 1
