"""Which backend decodes, when it is refused, and what is kept between requests."""

import contextlib
import copy
import functools
import logging

import pytest
import torch
import transformers
from torch import nn

from reverse.decoding.backends import auto
from reverse.decoding.backends.auto import AutoBackend, choose_backend
from reverse.decoding.backends.cuda_graph.graph_backend import CudaGraphBackend
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import Prompt
from reverse.models import family_of
from reverse.tokens import find_token_ids
from tests.decoding.hf_driver import decode, params, question
from tests.decoding.worlds import talkative

_world = functools.cache(talkative)
IDS = question("llava", 1, 0)[0]


@pytest.fixture
def model():
    return copy.deepcopy(_world("llava")[0])


@pytest.fixture
def capturable(monkeypatch):
    """As if every model were on a GPU and in bfloat16; nothing was logged yet."""
    monkeypatch.setattr(auto, "_why_not_worth_it", lambda model: None)
    monkeypatch.setattr(auto, "_logged", set())


def choose(model, name="auto", **settings):
    tags = find_token_ids(_world("llava")[1].tokenizer)
    return choose_backend(model, name, max_sequences=4, tags=tags, **settings)


def say(backend):
    (name,) = backend.add([Prompt(IDS)])
    said = decode(backend, {name: params("llava", 8, eos=frozenset())})[name].ids
    backend.release(name)
    return said


def test_names_choose_backends(model, capturable):
    """A request for one backend would be served by another."""
    assert isinstance(choose(model, "hf"), HfBackend)
    assert isinstance(choose(model, "cuda_graph"), CudaGraphBackend)
    assert isinstance(choose(model), AutoBackend)
    assert isinstance(choose(model, processors="Own"), HfBackend)
    with pytest.raises(ValueError, match="must be 'auto', 'hf' or 'cuda_graph', got 'fast'"):
        choose(model, "fast")
    with pytest.raises(ValueError, match=r"'cuda_graph' cannot decode this: Own has to see .*'auto'"):
        choose(model, "cuda_graph", processors="Own")


def test_auto_leaves_a_model_on_the_cpu_alone(model, caplog):
    """Every call on a CPU would warn of what nobody expects there."""
    with caplog.at_level(logging.WARNING, "reverse"):
        assert isinstance(choose(model), HfBackend)
    assert not caplog.records


def test_a_changed_model_is_refused_or_decoded_by_transformers(model, capturable, caplog):
    """A hooked model would be decoded as if it had no hook, or the reason be told at every call."""
    plain = say(choose(model, "cuda_graph"))
    held = choose(model, "cuda_graph")
    family_of(model).decoder(model).layers[0].register_forward_hook(lambda *args: args[-1].flip(-1))
    with pytest.raises(ValueError, match=r"'cuda_graph' cannot decode this: .*layers\.0 has a forward hook"):
        choose(model, "cuda_graph")
    with pytest.raises(ValueError, match=r"layers\.0 has a forward hook"):  # since it was chosen
        say(held)
    with caplog.at_level(logging.WARNING, "reverse"):
        said = [say(choose(model)) for _ in range(2)]
    assert said[0] == said[1] == say(choose(model, "hf")) != plain
    (record,) = caplog.records
    assert "decoding with backend 'hf': model.language_model.layers.0 has a forward" in record.message


def test_what_nobody_foresaw_is_found_by_comparing_logits(model, capturable, caplog, monkeypatch):
    """Any change that no check knows of would make captured steps talk of another model."""
    module = transformers.models.llama.modeling_llama
    original = module.rotate_half
    monkeypatch.setattr(module, "rotate_half", lambda x: original(x) * 3)
    with pytest.raises(ValueError, match=r"gives other logits than the model's forward pass \(by \d+.*auto"):
        say(choose(model, "cuda_graph"))
    backend = choose(model)
    with caplog.at_level(logging.WARNING, "reverse"):
        assert say(backend) == say(choose(model, "hf"))
    assert isinstance(backend.inner, HfBackend) and "gives other logits" in caplog.text
    assert say(backend) == say(choose(model, "hf"))


def test_cache_and_steps_stay_with_their_model(model):
    """Every engine would capture its steps anew, or the cache of a dropped model stay in memory."""
    first = choose(model, "cuda_graph")
    said = say(first)
    kept = auto._idle[model]
    second = choose(model, "cuda_graph")
    assert say(second) == said and auto._idle[model] is kept
    (name,) = first.add([Prompt(IDS)])
    (other,) = second.add([Prompt(IDS)])  # both at once: each has its own
    assert first.runner is kept and second.runner is not kept
    ended = [decode(each, {n: params("llava", 8, eos=frozenset())}) for each, n in
             ((first, name), (second, other))]  # fmt: skip
    assert [each.ids for end in ended for each in end.values()] == [said, said]
    first.release(name)
    second.reset()
    auto.release(model)
    assert model not in auto._idle


def test_a_cache_of_other_weights_is_not_used(model):
    """After a merge or a swap of adapters the old weights would go on talking."""
    before = say(choose(model, "cuda_graph"))
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().flip(1).clone())
    after = say(choose(model, "hf"))
    assert after != before and say(choose(model, "cuda_graph")) == after


def test_every_verb_runs_on_the_models_gpu(model, monkeypatch):
    """Kernels and graphs would start on the current GPU while the weights are on another."""
    entered = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(torch.cuda, "device", Device)
    backend = choose(model, "cuda_graph")
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cuda:1")))
    verbs = {"encode": ([],), "add": ([],), "split": (0, 1), "set_tokens": (0, [1]), "start": (0, None)}
    for verb, arguments in (verbs | {"step": (), "score": ([], "likelihood")}).items():
        entered.clear()
        with contextlib.suppress(KeyError):  # sequence 0 is not there
            getattr(backend, verb)(*arguments)
        assert entered == [torch.device("cuda:1")], verb
