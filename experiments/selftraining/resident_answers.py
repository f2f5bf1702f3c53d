"""Answers of a model to many questions at once, by the modes' own instructions, in large equal batches.

    model = ResidentModel(model, processor, passes, settings)
    found = measure_modes(model, features, settings, ("select", "refine"))
    found["greedy"]          # {"right": "0110…", "tokens": 68211, "seconds": 31.0}

The texts that are asked are those that the modes of `reverse.modes` write; pictures are read by the tower
once. The engine gives the same greedy answers (tested); it is not used here because it also does what
serving needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.reasoning.base_sampling import sample_answers
from experiments.reasoning.reasoning_measures import AskedQuestion, ask_questions
from experiments.reasoning.reasoning_recipe import REFLECTION
from experiments.reasoning.reasoning_rows import PLACES, RowPool, join_rows
from experiments.selftraining.loop_settings import LoopSettings
from experiments.uniform_passes import UniformPass
from reverse.data.records.schema import make_record
from reverse.decoding.asks import Conversation
from reverse.grading import grade
from reverse.modes import Refine, Reflect, Select, SelfCorrect
from reverse.modes.grammar.reflection_grammar import read_last_answer
from reverse.modes.shared.judging import show_candidates
from reverse.tokens.spans import remove_tags
from reverse.training.data.encoding import Encoder
from reverse.training.data.labels import IGNORE
from reverse.training.data.record_turns import turns_of

__all__ = ["ResidentModel", "draw_test_pictures", "measure_modes"]


@dataclass(frozen=True)
class SampledAnswers:
    """Texts as they were written and without tags, and the ids generated for all, ends not counted."""

    tagged: tuple[str, ...]
    tokens: int

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(remove_tags(text).strip() for text in self.tagged)


class ResidentModel:
    """A model that answers prompts about pictures whose features are known."""

    def __init__(self, model: Any, processor: Any, passes: UniformPass, settings: LoopSettings):
        self.passes, self.settings, self.processor = passes, settings, processor
        self.encoder = Encoder(processor)
        ends = model.generation_config.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends)
        cn, un = processor.tokenizer.convert_tokens_to_ids(["</CN>", "</UN>"])
        self.merged = (cn, un)

    def sample(
        self,
        features: Tensor,
        prompts: RowPool,
        samples: int = 1,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> list[SampledAnswers]:
        """`samples` answers to each prompt."""
        answers = sample_answers(
            self.passes, features, prompts, self.ends, samples=samples, temperature=temperature,
            merged=self.merged, seed=seed, batch=self.settings.batch,
            most_tokens=self.settings.most_tokens, say=say,
        )  # fmt: skip
        return [
            SampledAnswers(tuple(self._read(ids) for ids in each), sum(map(len, each))) for each in answers
        ]

    def _read(self, ids: Sequence[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def encode(self, asked: Sequence[tuple[int, Sequence[tuple[str, str]]]]) -> RowPool:
        """Prompts that end where the next answer begins.

        Args:
            asked: a picture's number, and turns of (question, answer); the last answer is not read.
        """
        rows = []
        for picture, turns in asked:
            row = self.encoder.row(turns_of(_make_record(turns)), self.passes.count)
            end = int((row.labels != IGNORE).argmax())
            rows.append((row.ids[:end].astype(np.int16), row.labels[:end].astype(np.int16), picture))
        return join_rows(rows)


def _make_record(turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A record whose last answer is the only one with targets."""
    record = make_record("asked", PLACES, turns[0][0], turns[0][1])
    said = record["conversations"]
    for question, answer in turns[1:]:
        said[-1]["targets"] = "none"
        more = make_record("asked", PLACES, question, answer)["conversations"]
        more[0]["value"] = question  # the picture stands in the first question
        said += more
    return record


def measure_modes(
    model: ResidentModel,
    features: Tensor,
    settings: LoopSettings,
    modes: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """What a model answers on the test split: greedy, samples with their votes, and some modes.

    Args:
        features: of the pictures of the test questions, in their order.

    Returns:
        By mode "right", one digit a question, "tokens" of all questions, and "seconds".
    """
    return _Measuring(model, features, settings, say).run(modes)


def draw_test_pictures(count: int) -> Tensor:
    """The pictures of the first `count` test questions, uint8 (count, side, side, 3)."""
    return torch.from_numpy(np.stack([each.picture for each in ask_questions("test", count)]))


@dataclass(frozen=True)
class _Graded:
    text: str
    tagged: str
    answer: str | None
    right: bool


class _Measuring:
    def __init__(
        self, model: ResidentModel, features: Tensor, settings: LoopSettings, say: Callable[[str], None]
    ):
        self.model, self.features, self.settings, self.say = model, features, settings, say
        self.asked: list[AskedQuestion] = ask_questions("test", settings.test_questions)
        self.found: dict[str, dict[str, Any]] = {}

    def run(self, modes: Sequence[str]) -> dict[str, dict[str, Any]]:
        first = self._ask("greedy", [[(each.question.text, "x")] for each in self.asked])
        texts = [each[0].text for each in first]
        if "select" in modes or "vote" in modes:
            self._select("select" in modes)
        if "refine" in modes:
            mode = Refine()
            asked: Any = [
                mode.ask_about(Conversation(None, each.question.text), text or " ")
                for each, text in zip(self.asked, texts, strict=True)
            ]
            self._ask("refine", [[(each.prompt, "x")] for each in asked], after="greedy")
        if "self_correct" in modes:
            turns = [
                [(each.question.text, answer.tagged or "x"), (SelfCorrect().instruction, "x")]
                for each, (answer,) in zip(self.asked, first, strict=True)
            ]
            self._ask("self_correct", turns, after="greedy")
        if "reflect" in modes:
            self._reflect()
        return self.found

    def _ask(
        self, name: str, turns: Sequence[Sequence[tuple[str, str]]], samples: int = 1, after: str = ""
    ) -> list[list[_Graded]]:
        """Ask every question and record the first answers; `after`: a mode whose tokens were spent before."""
        began = time.monotonic()
        prompts = self.model.encode(list(enumerate(turns)))
        temperature = 0.0 if samples == 1 else 1.0
        answers = self.model.sample(
            self.features, prompts, samples, temperature=temperature, seed=self.settings.seed + 1
        )
        graded = [[self._grade(number, text) for text in each.tagged] for number, each in enumerate(answers)]
        tokens = sum(each.tokens for each in answers) + (self.found[after]["tokens"] if after else 0)
        self._record(name, [each[0].right for each in graded], tokens, time.monotonic() - began)
        return graded

    def _grade(self, number: int, tagged: str) -> _Graded:
        text = remove_tags(tagged).strip()
        found = grade(text, self.asked[number].question.gold.key())
        return _Graded(text, tagged, found.extracted, found.verdict == "right")

    def _record(self, name: str, right: Sequence[bool], tokens: int, seconds: float) -> None:
        told = "".join("01"[each] for each in right)
        self.found[name] = {"right": told, "tokens": tokens, "seconds": round(seconds, 1)}
        self.say(f"{name}: {100 * sum(right) / len(right):.1f} % right, {tokens / len(right):.0f} tokens")

    def _select(self, asks: bool) -> None:
        """Votes and oracle of samples, and what the model chooses among them (`Select(judge="self")`)."""
        samples = self._ask(
            "sample", [[(each.question.text, "x")] for each in self.asked], self.settings.test_samples
        )
        spent = self.found["sample"]
        votes = [_vote(each) for each in samples]
        self._record("vote", [each.right for each in votes], spent["tokens"], spent["seconds"])
        oracle = [any(each.right for each in drafts) for drafts in samples]
        self._record("oracle", oracle, spent["tokens"], spent["seconds"])
        if not asks:
            return
        began, mode = time.monotonic(), Select()
        shown: dict[int, list[_Graded]] = {}
        for number, drafts in enumerate(samples):
            distinct = list({each.answer: each for each in drafts if each.answer is not None}.values())
            if len(distinct) > 1:
                Random(mode.seed).shuffle(distinct)
                shown[number] = distinct
        asked: Any = {
            number: show_candidates(
                Conversation(None, self.asked[number].question.text), [each.text for each in drafts],
                mode.instruction,
            )
            for number, drafts in shown.items()
        }  # fmt: skip
        chosen, tokens = list(votes), spent["tokens"]
        if shown:
            prompts = self.model.encode([(number, [(each.prompt, "x")]) for number, each in asked.items()])
            for number, reply in zip(
                shown, self.model.sample(self.features, prompts, temperature=0.0), strict=True
            ):
                tokens += reply.tokens
                named = self._grade(number, reply.tagged[0])
                picked = [each for each in shown[number] if each.answer == named.answer]
                chosen[number] = picked[0] if picked else votes[number]
        self._record("select", [each.right for each in chosen], tokens, time.monotonic() - began)

    def _reflect(self) -> None:
        """A whole turn in the grammar of `Reflect`: its first answers, and its last ones."""
        mode = Reflect(instruction=REFLECTION)
        asked: Any = [mode.ask(Conversation(None, each.question.text)) for each in self.asked]
        turns = self._ask("reflect", [[(each.prompt, "x")] for each in asked])
        spent = self.found.pop("reflect")
        firsts, lasts = [], []
        for number, (turn,) in enumerate(turns):
            head, mark, _ = turn.text.partition("</answer>")
            firsts.append(self._grade(number, read_last_answer(head + mark)).right)
            lasts.append(self._grade(number, read_last_answer(turn.text)).right)
        self._record("reflect_first", firsts, spent["tokens"], spent["seconds"])
        self._record("reflect", lasts, spent["tokens"], spent["seconds"])


def _vote(drafts: Sequence[_Graded]) -> _Graded:
    """The first sample with the answer that most samples give; one without an answer does not vote."""
    counts: dict[str, int] = {}
    for each in drafts:
        if each.answer is not None:
            counts[each.answer] = counts.get(each.answer, 0) + 1
    if not counts:
        return replace(drafts[0], right=False)
    winner = max(counts, key=lambda answer: counts[answer])
    return next(each for each in drafts if each.answer == winner)
