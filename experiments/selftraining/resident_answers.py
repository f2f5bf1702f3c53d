"""Answers of a model to many questions at once, by the modes' own instructions, in large equal batches.

    model = ResidentModel(model, processor, passes, settings)
    found = measure_modes(model, features, settings, ("select", "refine"))
    found["greedy"]          # {"right": "0110…", "tokens": 68211}

The texts that are asked are those that the modes of `reverse.modes` write; pictures are read by the tower
once. The engine gives the same greedy answers, refinements and corrections (tested); it is not used here
because it also does what serving needs. "select" chooses among samples at temperature 1, all of one
confidence, and "reflect" has no gate.
"""

from __future__ import annotations

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

    def count_tokens(self, text: str) -> int:
        return len(self.processor.tokenizer.encode(text, add_special_tokens=False))

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
        By mode "right", one digit a question, and "tokens" of all questions.
    """
    return ModeMeasurement(model, features, settings, say).run(modes)


def draw_test_pictures(count: int) -> Tensor:
    """The pictures of the first `count` test questions, uint8 (count, side, side, 3)."""
    return torch.from_numpy(np.stack([each.picture for each in ask_questions("test", count)]))


@dataclass(frozen=True)
class _Graded:
    text: str
    tagged: str
    answer: str | None
    right: bool


class ModeMeasurement:
    """Asks the test questions in the ways of several modes; `found` holds what `measure_modes` returns."""

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
        self,
        name: str,
        turns: Sequence[Sequence[tuple[str, str]]],
        samples: int = 1,
        temperature: float = 0.0,
        after: str = "",
    ) -> list[list[_Graded]]:
        """Ask every question and record the first answers; `after`: a mode whose tokens were spent before."""
        prompts = self.model.encode(list(enumerate(turns)))
        answers = self.model.sample(
            self.features, prompts, samples, temperature=temperature, seed=self.settings.seed + 1
        )
        graded = [[self._grade(number, text) for text in each.tagged] for number, each in enumerate(answers)]
        tokens = sum(each.tokens for each in answers) + (self.found[after]["tokens"] if after else 0)
        self._record(name, [each[0].right for each in graded], tokens)
        return graded

    def _grade(self, number: int, tagged: str) -> _Graded:
        text = remove_tags(tagged).strip()
        found = grade(text, self.asked[number].question.gold.key())
        return _Graded(text, tagged, found.extracted, found.verdict == "right")

    def _record(self, name: str, right: Sequence[bool], tokens: int) -> None:
        self.found[name] = {"right": "".join("01"[each] for each in right), "tokens": tokens}
        self.say(f"{name}: {100 * sum(right) / len(right):.1f} % right, {tokens / len(right):.0f} tokens")

    def _select(self, asks: bool) -> None:
        """Votes and oracle of samples, and what the model chooses among them (`Select(judge="self")`)."""
        questions = [[(each.question.text, "x")] for each in self.asked]
        samples = self._ask("sample", questions, self.settings.test_samples, temperature=1.0)
        tokens, votes = self.found["sample"]["tokens"], [_vote(each) for each in samples]
        self._record("vote", [each.right for each in votes], tokens)
        self._record("oracle", [any(each.right for each in drafts) for drafts in samples], tokens)
        if not asks:
            return
        chosen = list(votes)
        for number, (shown, reply, spent) in self._ask_to_choose(samples).items():
            tokens += spent
            picked = [each for each in shown if each.answer == reply.answer]
            chosen[number] = picked[0] if picked else votes[number]
        self._record("select", [each.right for each in chosen], tokens)

    def _ask_to_choose(
        self, samples: Sequence[Sequence[_Graded]]
    ) -> dict[int, tuple[list[_Graded], _Graded, int]]:
        """Of the questions with several answers: what is shown, the reply and its tokens."""
        mode, shown = Select(), {}
        for number, drafts in enumerate(samples):
            best = {each.answer: place for place, each in enumerate(drafts) if each.answer is not None}
            if len(best) > 1:
                random, places = Random(mode.seed), sorted(best.values())
                random.shuffle(places)
                shown[number] = [drafts[place] for place in random.sample(places, len(places))]
        if not shown:
            return {}
        asked = []
        for number, drafts in shown.items():
            source = Conversation(None, self.asked[number].question.text)
            question: Any = show_candidates(source, [each.text for each in drafts], mode.instruction)
            asked.append((number, [(question.prompt, "x")]))
        replies = self.model.sample(self.features, self.model.encode(asked), temperature=0.0)
        return {
            number: (drafts, self._grade(number, reply.tagged[0]), reply.tokens)
            for (number, drafts), reply in zip(shown.items(), replies, strict=True)
        }

    def _reflect(self) -> None:
        """A whole turn in the grammar of `Reflect`: its first answers, and its last ones."""
        mode = Reflect(instruction=REFLECTION)
        asked: Any = [mode.ask(Conversation(None, each.question.text)) for each in self.asked]
        turns = self._ask("reflect", [[(each.prompt, "x")] for each in asked])
        spent = self.found.pop("reflect")
        firsts, lasts, first_tokens = [], [], 0
        for number, (turn,) in enumerate(turns):
            head, mark, _ = turn.text.partition("</answer>")
            first_tokens += self.model.count_tokens(turn.tagged.partition("</answer>")[0] + mark)
            firsts.append(self._grade(number, read_last_answer(head + mark)).right)
            lasts.append(self._grade(number, read_last_answer(turn.text)).right)
        self._record("reflect_first", firsts, first_tokens)
        self._record("reflect", lasts, spent["tokens"])


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
