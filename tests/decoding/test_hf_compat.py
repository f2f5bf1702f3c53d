"""What the transformers backend assumes of transformers: where it does not hold, an error says so at once."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, MistralConfig

from reverse.compatibility import IncompatibleLibraryError
from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import Picture, Prompt
from tests.decoding.hf_driver import FAMILIES, add, params, question
from tests.decoding.worlds import talkative


@pytest.fixture
def own():
    """A model that a test may change."""
    return talkative("qwen")[0]


def test_a_cache_that_forgets_tokens_is_refused():
    """A sliding window would have dropped what a rewind goes back to."""
    model = SimpleNamespace(config=MistralConfig(num_hidden_layers=2, sliding_window=8))
    with pytest.raises(ValueError, match="DynamicSlidingWindowLayer, which cannot be rewound"):
        compat.new_cache(model)


def test_a_forward_that_does_not_fill_the_cache_is_noticed(own):
    """The next token would be chosen without the prompt."""
    own.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {compat.cache_argument(own): DynamicCache()}),
        with_kwargs=True,
    )
    backend = HfBackend(own, max_sequences=2)
    with pytest.raises(IncompatibleLibraryError, match="the cache holds nothing as keys of layer 0"):
        backend.add([Prompt(question("qwen", 0, 0)[0])])


def test_a_step_that_does_not_fill_the_cache_is_noticed(own):
    """A token would be lost, and everything after it be said without it."""
    backend = HfBackend(own, max_sequences=2)
    (name,) = add(backend, "qwen", (0, 0))
    backend.start(name, params("qwen", 4, eos=frozenset(), temperature=1.0))
    assert backend.step()
    if backend._sequences[name].segment is None:
        backend.start(name, params("qwen", 4))

    def forget(module, args, output):
        layer = backend._cache._cache.layers[-1]
        layer.values = layer.values[:, :, 1:]

    own.register_forward_hook(forget)
    with pytest.raises(IncompatibleLibraryError, match="as values of layer 1, where"):
        backend.step()
    backend.reset()


def test_features_of_another_number_or_shape_are_noticed(own, monkeypatch):
    """Pictures would be put in the places of others."""
    _, (one,) = question("qwen", 0)
    encode = own.model.get_image_features

    def joined(**inputs):
        encoded = encode(**inputs)
        encoded.pooler_output = torch.cat(list(encoded.pooler_output))
        return encoded

    monkeypatch.setattr(own.model, "get_image_features", joined)
    with pytest.raises(IncompatibleLibraryError, match=r"gave 32 tensors, such as of shape .64,., for 2"):
        HfBackend(own, max_sequences=2).encode([one, one])


def test_positions_of_another_shape_are_noticed(own, monkeypatch):
    """Text positions would be taken for rotary ones."""
    ids, pictures = question("qwen", 0)
    backend = HfBackend(own, max_sequences=2)
    index = own.model.get_rope_index
    monkeypatch.setattr(own.model, "get_rope_index", lambda *args, **options: index(*args, **options)[::-1])
    with pytest.raises(IncompatibleLibraryError, match=r"get_rope_index\(\) gave shapes"):
        backend.add([Prompt(ids, backend.encode(pictures))])


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_equals_what_generate_encodes(family):
    """Pictures would be encoded with other arguments than `model.generate()` gives, such as a layer."""
    model, _ = talkative(family)
    pictures = [question(family, row)[1][0] for row in (0, 0)]
    seen = []

    def capture(model, input_ids, *args, mm_encoder_outputs=None, **kwargs):
        seen.extend(mm_encoder_outputs["image"].pooler_output)
        return input_ids

    ids = torch.tensor([question(family, 0)[0]] * 2)
    tensors = {name: torch.cat([each.tensors[name] for each in pictures]) for name in pictures[0].tensors}
    if family == "qwen":
        tensors["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=capture,
        max_new_tokens=1,
        **tensors,
    )
    ours = HfBackend(model, max_sequences=2).encode([Picture(each.tensors) for each in pictures])
    assert len(seen) == 2 and all(torch.equal(a.features, b) for a, b in zip(ours, seen, strict=True))
