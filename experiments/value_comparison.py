"""A value head against the confidence of the tags, as judges of the same samples of one model.

    python -m experiments.value_comparison --model tiny-reasoner --out out/value --name tiny-reasoner

The model samples answers to questions of `val`; a value head learns the values of their steps (TSST's tree
values) on the model's frozen states. Then the model samples answers to questions of `test`, and every sample
gets the value of the head and the confidences of its tags. What is written: how well each of them tells right
samples from wrong ones (AUROC), and how often the best sample and the weighted vote by each are right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.claim_files import add_claims
from experiments.reasoning.reasoning_measures import (
    KEEP,
    AskedQuestion,
    MeasuredMode,
    ask_questions,
    make_request,
)
from experiments.recipe_arguments import read_recipe
from reverse import Engine
from reverse.data.drafts.draft_record import DraftRecord, DraftSegment, RecordedDraft
from reverse.data.scenes.reasoning import make_verified_draft
from reverse.decoding.asks import Sampling, Score
from reverse.decoding.config import ResamplingConfig
from reverse.evaluation.modes.mode_effects import answer_auroc
from reverse.evaluation.modes.question_means import estimate_mean
from reverse.evaluation.modes.sample_curves import values_at
from reverse.evaluation.runs.environment import describe_environment
from reverse.evaluation.stats.intervals import Interval
from reverse.files.atomic_write import write_json
from reverse.files.json_values import replace_non_finite
from reverse.models import load
from reverse.models.devices import default_device
from reverse.models.value_head import attach_value_head
from reverse.modes.mode import TEXT, Asks, Budget, Drafts, ModeRequest, ask_for_samples, turn_of
from reverse.modes.shared.confidence import CONFIDENCES, compute_confidence
from reverse.training.value_training import ValueConfig, train_value_head

__all__ = ["JudgedSamples", "ValueRecipe", "compare_judges"]

RESULTS = Path("benchmarks/results/selftraining.json")
VALUE = "value"


@dataclass(frozen=True)
class ValueRecipe:
    """Everything that decides what comes out."""

    model: str = "tiny-reasoner"  # a folder, or the name of a bundled model
    out: str = "out/value"
    name: str = ""  # under which the claims go to the results; empty: they go to OUT alone
    val_questions: int = 600  # that the head learns from
    test_questions: int = 2_000
    samples: int = 8  # of a question, at temperature 1
    most_tokens: int = 160  # of one answer
    sequences: int = 128  # decoded side by side
    seed: int = 0

    def smoke(self) -> ValueRecipe:
        """The same in miniature."""
        return replace(self, val_questions=6, test_questions=4, samples=3)


@dataclass(frozen=True)
class JudgedSamples:
    """A mode that samples `n` answers and keeps what each judge thinks of them in `scores`, by judge."""

    n: int
    has_values: bool
    scores: dict[str, list[float]] = field(default_factory=dict)
    name = "judged_samples"

    def run(self, request: ModeRequest) -> Asks:
        drafts = Drafts(TEXT, Budget())
        how = Sampling(temperature=1.0, top_k=0, top_p=1.0)
        outcomes = yield ask_for_samples(request.conversation, KEEP, self.n, how)
        turns = [turn_of(outcome) for outcome in outcomes]
        self.scores.update({kind: [compute_confidence(turn, kind) for turn in turns] for kind in CONFIDENCES})
        if self.has_values:
            self.scores[VALUE] = yield [Score(outcome.node, "value") for outcome in outcomes]
        made = [drafts.add("sample", outcome, 0.0) for outcome in outcomes]
        return drafts.finish(outcomes[0], made[0])


@dataclass(frozen=True)
class _Sampled:
    """A question, its samples with their steps verified, and the scores of these by judge."""

    asked: AskedQuestion
    drafts: tuple[RecordedDraft, ...]
    scores: Mapping[str, Sequence[float]]
    tokens: int

    def record(self, judge: str = "") -> DraftRecord:
        """The samples as a record; their confidence, and p(`</UN>`) of one phrase, are those of a judge."""
        question, drafts = self.asked.question, self.drafts
        if judge:
            drafts = tuple(map(_judge, drafts, self.scores[judge]))
        images = (f"{question.id.rpartition('-')[0]}.png",)
        return DraftRecord(
            id=question.id, question=question.text, images=images, gold=question.gold, drafts=drafts
        )


def _judge(draft: RecordedDraft, score: float) -> RecordedDraft:
    phrase = DraftSegment(
        start=0, end=max(1, len(draft.text)), kind="phrase", verdict="unknown", p_un=1 - score
    )
    return draft.model_copy(update={"confidence": score, "segments": (phrase,)})


def sample_questions(
    engine: Engine, split: str, count: int, recipe: ValueRecipe, *, has_values: bool
) -> list[_Sampled]:
    """Samples of the first question about each of the first `count` pictures of a split."""
    asked = ask_questions(split, count)
    modes = [JudgedSamples(recipe.samples, has_values) for _ in asked]
    config = ResamplingConfig(hints=0, seed=recipe.seed)
    handles = [
        engine.submit(make_request(each, MeasuredMode(mode, config), recipe.most_tokens))
        for each, mode in zip(asked, modes, strict=True)
    ]
    found = []
    for each, mode, handle in zip(asked, modes, handles, strict=True):
        result = handle.result()
        drafts = tuple(
            make_verified_draft(each.question, draft.text, role="sample") for draft in result.drafts
        )
        tokens = result.usage.kept + result.usage.discarded
        found.append(_Sampled(each, drafts, mode.scores, tokens))
    return found


def compare_judges(sampled: Sequence[_Sampled]) -> dict[str, dict[str, Any]]:
    """AUROC, and accuracy of the best sample and of the weighted vote, by judge; and of the plain vote."""
    most = min(len(each.drafts) for each in sampled)
    found: dict[str, dict[str, Any]] = {}
    for judge in sampled[0].scores:
        records = [each.record(judge) for each in sampled]
        found[judge] = {"auroc": _show(answer_auroc(records))}
        for rule in ("best", "weighted"):
            found[judge][rule] = _show(estimate_mean(records, values_at(records, rule, most)))
    plain = [each.record() for each in sampled]  # without confidences: no judge decides a tie
    found["all"] = {
        rule: _show(estimate_mean(plain, values_at(plain, rule, most))) for rule in ("vote", "oracle")
    }
    if VALUE in found:
        value, product = ([each.record(judge) for each in sampled] for judge in (VALUE, "product"))
        for rule in ("best", "weighted"):
            gain = values_at(value, rule, most) - values_at(product, rule, most)
            found["all"][f"{rule}_by_value_over_product"] = _show(estimate_mean(value, gain))
    return found


def _show(interval: Interval | None) -> list[float] | None:
    if interval is None:
        return None
    return [round(float(each), 5) for each in (interval.point, interval.low, interval.high)]


def run(recipe: ValueRecipe, say: Callable[[str], None]) -> dict[str, Any]:
    """Sample, train the head, sample and compare."""
    model, processor = load(recipe.model, device=default_device(), dtype="float32")
    engine = Engine(model, processor, max_sequences=recipe.sequences)
    learnt_from = sample_questions(engine, "val", recipe.val_questions, recipe, has_values=False)
    say(f"{len(learnt_from)} questions of val sampled")
    images = Path(recipe.out) / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = [each.record() for each in learnt_from]
    for each, record in zip(learnt_from, records, strict=True):
        Image.fromarray(each.asked.picture).save(images / record.images[0])
    began = time.monotonic()
    head, report = train_value_head(model, processor, records, images, ValueConfig(seed=recipe.seed))
    say(f"value head trained: {report}")
    trained = round(time.monotonic() - began, 1)
    attach_value_head(model, head)
    engine = Engine(model, processor, max_sequences=recipe.sequences)
    sampled = sample_questions(engine, "test", recipe.test_questions, recipe, has_values=True)
    tokens = float(np.mean([each.tokens for each in sampled]))
    return {
        "settings": {name: getattr(recipe, name) for name in recipe.__dataclass_fields__ if name != "out"},
        "judges": compare_judges(sampled),
        "head": report | {"seconds": trained},
        "tokens_a_question": round(tokens, 1),
        "tokens_learnt_from": sum(each.tokens for each in learnt_from),
        **describe_environment(default_device()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.value_comparison`."""
    recipe = read_recipe(ValueRecipe, "python -m experiments.value_comparison", __doc__, arguments)
    found = replace_non_finite(run(recipe, lambda line: print(line, flush=True)))
    write_json(Path(recipe.out) / "value.json", found)
    if recipe.name:
        judges = found["judges"]
        claims = {"value_auroc": judges[VALUE]["auroc"]}
        claims |= {f"{kind}_confidence_auroc": judges[kind]["auroc"] for kind in CONFIDENCES}
        claims["best_by_value_over_confidence"] = judges["all"]["best_by_value_over_product"]
        add_claims(RESULTS, recipe.name, claims, {f"value_{recipe.name}": found})
    print(f"{recipe.out}/value.json")


if __name__ == "__main__":
    main()
