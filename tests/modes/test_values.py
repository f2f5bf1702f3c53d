"""Values of nodes: what a fresh forward of the same ids gives, whatever was decoded, dropped or split."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from PIL import Image

import reverse
from reverse.data.scenes import make_scene, render_scene
from reverse.decoding.asks import Generate, Outcome, Release, Sampling, Score
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import OutOfMemory
from reverse.decoding.policies.plain_policy import PlainPolicy
from reverse.errors import RequestError
from reverse.models import family_of, prepare_inputs
from reverse.models.value_head import ValueHead, attach_value_head, hidden_size_of
from reverse.modes import Select, Tree
from tests.modes.driving import Driver, Say

FAMILIES = ("tiny-llava", "tiny-qwen")
picture = functools.cache(lambda i: Image.fromarray(render_scene(make_scene("test", i))))
QUESTION = "Describe this image."


@functools.cache
def load(name: str) -> tuple[Any, Any, ValueHead]:
    model, processor = reverse.load(name, dtype=torch.float64)
    torch.manual_seed(0)
    head = ValueHead(hidden_size_of(model)).double()
    torch.nn.init.normal_(head.linear.weight, std=0.2)
    return model, processor, head


@pytest.fixture(params=FAMILIES)
def world(request: pytest.FixtureRequest) -> Any:
    model, processor, head = load(request.param)
    attach_value_head(model, head)
    yield model, processor, head
    attach_value_head(model, None)


def fresh_value(model: Any, processor: Any, head: ValueHead, image: Any, ids: tuple[int, ...]) -> float:
    """The value of ids by transformers' own forward, without a cache."""
    inputs = dict(prepare_inputs(processor, [image], [QUESTION], family_of(model)))
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == processor.image_token_id).int()
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1]
        return float(head(hidden[0, -1]))


class Probe:
    """Samples, scores them, goes on from one whose cache is dropped, and scores again."""

    name = "probe"

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], float]] = []

    def run(self, request: Any) -> Any:
        samples = yield [Generate(request.conversation, 3, "sentence", Sampling(1.0), policy=PlainPolicy)]
        values = yield [Score(each.node, "value") for each in samples]
        again = yield [Score(samples[0].node, "value"), Score(samples[0].node, "likelihood")]
        assert again[0] == values[0]
        yield [Release(samples[1].node)]
        longer = yield [Generate(each.node.continue_assistant(), policy=PlainPolicy) for each in samples]
        yield [Release(longer[2].node)]
        more = yield [Score(each.node, "value") for each in longer]
        turn = longer[0].node.user("Is that right?")
        (last,) = yield [Generate(turn, policy=PlainPolicy)]
        (value,) = yield [Score(last.node, "value")]
        for outcome, found in zip([*samples, *longer, last], [*values, *more, value], strict=True):
            self.seen.append((outcome.node.ids, found))
        return longer[1]


def test_a_value_is_that_of_a_fresh_forward(world: Any) -> None:
    """A tree would be searched by the value of another text, or of another place in it."""
    model, processor, head = world
    engine = reverse.Engine(model, processor, max_sequences=4)
    probes = [Probe() for _ in range(3)]
    requests = [
        reverse.Request(picture(i), QUESTION, mode=probe, max_new_tokens=12, seed=i)
        for i, probe in enumerate(probes)
    ]
    handles = [engine.submit(each) for each in requests]
    results = [handle.result() for handle in handles]
    for i, probe in enumerate(probes):
        assert len(probe.seen) == 7
        for ids, value in probe.seen:
            assert value == pytest.approx(fresh_value(model, processor, head, picture(i), ids), abs=1e-9)
        alone = Probe()
        result = reverse.generate(
            model, processor, picture(i), QUESTION, mode=alone, max_new_tokens=12, seed=i
        )  # a batch equals its requests alone
        assert result.ids == results[i].ids
        assert [value for _, value in alone.seen] == pytest.approx([value for _, value in probe.seen])


def test_scores_survive_a_full_device(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value would be lost, or the request would wait for ever, when memory runs out while it is read."""
    model, processor, _ = world

    def answer(probe: Probe) -> None:
        engine = reverse.Engine(model, processor, max_sequences=4)
        request = reverse.Request(picture(0), QUESTION, mode=probe, max_new_tokens=12, seed=3)
        engine.submit(request).result()

    calm = Probe()
    answer(calm)
    score = HfBackend._read_values
    for failing in (1, 2, 3, 4):
        calls = [0]

        def fail(self: Any, rows: Any, calls: list[int] = calls, failing: int = failing) -> Any:
            calls[0] += 1
            if calls[0] <= failing:
                raise OutOfMemory("full")
            return score(self, rows)

        monkeypatch.setattr(HfBackend, "_read_values", fail)
        probe = Probe()
        try:
            answer(probe)
        except OutOfMemory as error:
            assert "out of memory with a single row" in str(error) and failing > 2  # at last it is said
            continue
        assert [ids for ids, _ in probe.seen] == [ids for ids, _ in calm.seen]
        assert [value for _, value in probe.seen] == pytest.approx([value for _, value in calm.seen])


def test_a_model_without_a_head_says_so(world: Any) -> None:
    """A tree by value would be searched by nothing."""
    model, processor, _ = world
    attach_value_head(model, None)
    mode = Select(n=2, judge="value")
    with pytest.raises(RequestError, match="the model has no value head"):
        reverse.generate(model, processor, picture(0), mode=mode, max_new_tokens=4)


@pytest.mark.parametrize(
    "mode", [Select(n=3, judge="value"), Tree(scorer="value", beams=2, branch=2, depth=2)]
)
def test_modes_by_value_run_on_a_model(world: Any, mode: Any) -> None:
    """The mode would fail where its parts work."""
    model, processor, _ = world
    result = reverse.generate(model, processor, picture(1), mode=mode, max_new_tokens=10)
    assert result.text and sum(draft.accepted for draft in result.drafts) >= 1


class Judge(Driver):
    """Scores each node by the length of its text."""

    def follow(self, ask: Any, source: Any) -> list[Any]:
        if isinstance(ask, Score) and ask.kind == "value":
            return [len(ask.node.ids) / 1000]
        return super().follow(ask, source)


def test_select_takes_the_highest_value() -> None:
    """The most confident answer would be taken, or the first."""
    texts = iter(["one", "the longest", "two two"])
    driver = Judge(lambda ask, prompt: Say(next(texts), confidence=0.5))
    outcome = driver.run(Select(n=3, judge="value"))
    assert isinstance(outcome, Outcome) and outcome.text == "the longest"


def test_tree_keeps_the_highest_values() -> None:
    """The beam would hold the worst sentences."""
    texts = iter(["a.", "a longer one.", "mid."] + ["end"] * 9)
    driver = Judge(lambda ask, prompt: Say(text := next(texts), 0.5, "eos" if text == "end" else "stop"))
    outcome = driver.run(Tree(scorer="value", beams=1, branch=3, depth=2, finished=1))
    assert "a longer one." in driver.asked[-1][1] and outcome.text.endswith("end")


def test_a_copied_model_has_no_head(world: Any) -> None:
    """A head would judge the hidden states of another model."""
    from reverse.models.value_head import find_value_head

    model, _, head = world
    assert find_value_head(model) is head and find_value_head(copy.copy(model)) is None
