"""The captured engine against a cacheless computation and the dynamic engine, on the CPU in float64."""

import functools
import random

import pytest
import torch
from torch import nn

import reverse
from reverse.decoding import _hf
from reverse.decoding.backend import Draw, Prefill
from reverse.decoding.sampling import choose, mask_tags, uniform
from reverse.decoding.static.backend import StaticBackend
from reverse.decoding.static.engine import Engine
from reverse.decoding.static.state import Style
from reverse.decoding.static.weights import text_model, unsupported
from reverse.models.tiny import build_tiny_llava
from reverse.tokens import token_ids
from tests.decoding.test_backend import inputs_for
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
ROOM = 16
world = functools.cache(talkative)


def prefilled(model, family, rows):
    held = []

    def capture(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        eos = _hf.eos_ids(generation_config)
        held.append(Prefill(input_ids, generation_config, kwargs, (), eos, 0))
        return input_ids

    model.generate(**inputs_for(family, rows), custom_generate=capture, max_new_tokens=64)
    return held[0]


class Naive:
    """Every token from a full forward pass of one row."""

    def __init__(self, model, family, row, tags, eos):
        self.model, self.tags, self.eos = model, tags, eos
        self.inputs = inputs_for(family, [row])

    def run(self, text, draw):
        ids, out, inside = list(text), [], False
        while len(out) < draw.room:
            inputs = dict(self.inputs)
            inputs["input_ids"] = torch.tensor([ids])
            inputs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.int64)
            if "mm_token_type_ids" in inputs:
                types = inputs["mm_token_type_ids"]
                text_after = torch.zeros(1, len(ids) - types.shape[1], dtype=types.dtype)
                inputs["mm_token_type_ids"] = torch.cat([types, text_after], dim=1)
            logits = self.model(**inputs).logits[:, -1]
            noise = uniform(draw.seed, draw.position + len(out), draw.attempt)
            token = int(choose(mask_tags(logits.float(), [inside], self.tags), [draw.temperature], [noise]))
            out.append((token, logits.float().softmax(-1)[0, self.tags.un].item()))
            ids.append(token)
            inside = inside or token == self.tags.span
            if token in self.tags.closing or token in self.eos:
                break
        return out


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_segment_is_what_a_fresh_run_says(family):
    """A rewind, a fed hint, an adopted candidate or a step looked ahead would leave something behind."""
    model, processor = world(family)
    tags = token_ids(processor.tokenizer)
    batch = prefilled(model, family, range(4))
    backend = StaticBackend(
        model, lambda lanes, slots: Engine(text_model(model), lanes, slots), style=Style(tags), slots=4
    )
    rows = backend.admit(batch)
    naive = {row: Naive(model, family, i, tags, batch.eos) for i, row in enumerate(rows)}
    texts = {row: list(backend.rows[row].ids) for row in rows}
    dice = random.Random(0)
    draws = {}

    def begin(row, draw):
        draws[row] = draw
        backend.start(row, draw)

    def check(row, run, draw):
        expected = naive[row].run(texts[row], draw)
        assert [token for token, _ in expected] == list(run.ids)
        assert run.ps == pytest.approx([p for _, p in expected], abs=1e-5)

    for i, row in enumerate(rows):
        begin(row, Draw(ROOM, 0.0 if i % 2 else 0.9, 7 + i, 0, 0, calm=0.9 * (i == 2)))
    forks, seen, kinds = {}, 0, set()
    while rows:
        for row, candidate, run in backend.extend():
            if row in forks:
                waiting, found = forks[row]
                check(row, run, waiting[candidate])
                found[candidate] = run
                if len(found) < len(waiting):
                    continue
                del forks[row]
                won = dice.randrange(len(waiting))
                assert backend.adopt(row, won) == 0
                texts[row] += found[won].ids
                draw = waiting[won]
                following = Draw(ROOM, 0.5, draw.seed, draw.position + len(found[won].ids), draw.attempt)
                backend.rewind(row, texts[row])
                begin(row, following)
                continue
            draw = draws[row]
            check(row, run, draw)
            seen += 1
            if len(texts[row]) > 140 or seen > 24:
                backend.finish(row)
                rows.remove(row)
                continue
            kind = dice.choice(["on", "back", "hint", "fork"])
            kinds.add(kind)
            heat, attempt = dice.choice([0.0, 0.7]), draw.attempt + 1
            if kind == "on":
                texts[row] += run.ids
                heat, attempt = dice.choice([draw.calm, draw.temperature]), draw.attempt
            elif kind == "hint":
                hint = [20 + seen % 50, 30, 40] * dice.randint(1, 9)
                texts[row][-3:-3] = hint
            position = draw.position + (len(run.ids) if kind == "on" else 0)
            backend.rewind(row, texts[row])
            if kind == "fork":
                several = [Draw(ROOM, 0.8, draw.seed, position, attempt + i) for i in range(3)]
                forks[row] = (several, {})
                backend.fork(row, several)
            else:
                begin(row, Draw(ROOM, heat, draw.seed, position, attempt, dice.choice([0.0, heat])))
    assert kinds == {"on", "back", "hint", "fork"} and backend.free() == 4


def test_a_rejection_costs_one_step_beside_what_is_said_again(monkeypatch):
    """The step ahead would be thrown away for accepted phrases too, as when the temperature falls back."""
    model, processor = talkative("llava", seed=1)
    made = []
    step = Engine.step

    def counted(self, strands, feeds, style, warm):
        made.append(len(strands) + len(feeds))
        return step(self, strands, feeds, style, warm)

    monkeypatch.setattr(Engine, "step", counted)
    settings = {"threshold": 0.3, "max_new_tokens": 40, "hints": 0, "max_attempts": 8}
    rejections = 0
    for seed in range(6):
        made.clear()
        result = reverse.generate(model, processor, picture(seed), engine="static", **settings)
        rejections += len(result.trace)
        kept = sum(phrase.status == "unresolved" for phrase in result.phrases)
        # a suspect phrase that is kept may get another closing tag; one more for the end of the text
        assert sum(made) <= result.usage.forwards + len(result.trace) + kept + 1
    assert rejections > 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [{}, {"hints": 0}, {"do_sample": True}, {"candidates": 3}, {"mode": "plain"}]
)
def test_static_says_what_dynamic_says(family, options):
    """The choice of the engine would change answers."""
    model, processor = world(family)
    pictures = [
        picture(i, size) for i, size in enumerate([(112, 112), (140, 84), (84, 168), (112, 56), (98, 98)])
    ]
    settings = {
        "threshold": 0.3,
        "max_new_tokens": 40,
        "local_attempts": 3,
        "max_attempts": 10,
        "batch_size": 3,
    }
    found = [
        reverse.generate(model, processor, pictures, engine=engine, **settings | options)
        for engine in ("dynamic", "static")
    ]
    for dynamic, static in zip(*found, strict=True):
        assert static.ids == dynamic.ids
        assert [e.phrase for e in static.trace] == [e.phrase for e in dynamic.trace]
        assert [e.p_un for e in static.trace] == pytest.approx([e.p_un for e in dynamic.trace], abs=1e-5)
    assert options.get("mode") == "plain" or any(r.trace for r in found[0])


def test_the_engine_is_kept_and_let_go():
    """Every call would capture its steps anew, or the cache of a dropped model stay in memory."""
    from reverse.decoding import engines

    model, processor = talkative("llava", seed=3)
    for _ in range(2):
        reverse.generate(model, processor, picture(0), engine="static", threshold=0.3, max_new_tokens=8)
    kept = engines._idle[model]
    reverse.generate(model, processor, picture(0), engine="static", threshold=0.3, max_new_tokens=8)
    assert engines._idle[model] is kept
    engines.release(model)
    assert model not in engines._idle


def test_what_cannot_be_captured_is_named():
    """An adapter, a quantised layer or a caller's processor would be ignored in silence."""
    model, processor = build_tiny_llava()
    reverse.add_tokens(model, processor)
    assert unsupported(model) is None
    with pytest.raises(ValueError, match=r"engine='static'.*RepetitionPenalty.*auto"):
        reverse.generate(
            model,
            processor,
            picture(0),
            engine="static",
            threshold=0.3,
            generation={"repetition_penalty": 1.5},
        )
    with pytest.raises(ValueError, match=r"engine must be one of.*'fast'"):
        reverse.generate(model, processor, picture(0), engine="fast")
    text = model.config.get_text_config()
    text.use_sliding_window, text.sliding_window = True, 64
    assert unsupported(model) == "sliding_window=64"
    text.use_sliding_window = False
    layer = model.model.language_model.layers[0]

    class Wrapped(nn.Linear):
        pass

    layer.self_attn.q_proj = Wrapped(64, 64, bias=False)
    assert "q_proj is a Wrapped" in unsupported(model)
