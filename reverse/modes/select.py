"""Sample several answers behind one prefill and keep one of them (R3V; best of n; votes)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from reverse.decoding.asks import (
    Ask,
    Conversation,
    Generate,
    Mode,
    Node,
    Outcome,
    Run,
    Sampling,
    find_policy,
    resolve_mode,
)
from reverse.decoding.config import check_whole_number
from reverse.decoding.result import Draft
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.mode import (
    TEXT,
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    check_confidence,
    question_of,
    replace_question,
    score_answers,
)

__all__ = ["JUDGES", "PICK", "Select", "find_vote_winner", "pick_by_model", "show_candidates"]

JUDGES = ("best", "vote", "weighted", "self")
PICK = (
    "{question}\nHere are answers that were given:\n{candidates}\n"
    "One of them is right. Give the right final answer."
)


@dataclass(frozen=True)
class Select:
    """One of `n` answers that share a prefill.

    Args:
        n: how many answers.
        judge: `"best"` keeps the most confident one; `"vote"` the answer that most samples give, ties by
        confidence;
            `"weighted"` weighs votes by confidence; `"self"` shows the distinct answers to the model, which
            gives the final one (in groups of `group`, until one is left). What it says that is none of them
            falls back to the vote.
        inner: the mode that makes each answer; None: resample.
        confidence: as of `compute_confidence`; None: by phrases where there are any, else by likelihood.
        temperature, top_k, top_p: of the samples.
        greedy_first: the first sample takes the most probable tokens.
        group: candidates that the model is shown at once. permutations: orders they are shown in; the
        orders vote.
        seed: of the order of candidates.
        instruction: the question of `"self"`, with {question} and {candidates}.

    Source: R3V (arXiv 2411.00855) §3.3.
    """

    name = "select"
    n: int = 8
    judge: Literal["best", "vote", "weighted", "self"] = "best"
    inner: str | Mode | None = None
    confidence: str | None = None
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.95
    greedy_first: bool = False
    group: int = 3
    permutations: int = 1
    seed: int = 0
    instruction: str = PICK
    answer_format: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_whole_number("n", self.n, 1, ": 2 is the least that has a choice")
        check_whole_number("group", self.group, 2)
        check_whole_number("permutations", self.permutations, 1)
        if self.judge not in JUDGES:
            raise RequestError(f"judge must be one of {', '.join(JUDGES)}, got {self.judge!r:.80}")
        if not all(place in self.instruction for place in ("{question}", "{candidates}")):
            raise RequestError(
                "instruction must name {question} and {candidates}, got " + repr(self.instruction[:80])
            )
        check_confidence(self.confidence)

    def run(self, request: ModeRequest) -> Asks:
        drafts = Drafts(self.answer_format, self.budget)
        outcomes: list[Outcome] = yield self._ask_for_samples(request.conversation, drafts)
        scores = yield from score_answers(outcomes, self.confidence)
        made = [drafts.add("sample", outcome, score) for outcome, score in zip(outcomes, scores, strict=True)]
        if self.judge == "best":
            chosen = max(range(len(made)), key=lambda i: (made[i].confidence, -i))
        elif self.judge == "self" and not drafts.is_spent:
            chosen = yield from pick_by_model(
                request.conversation, made, self.answer_format, drafts,
                group=self.group, permutations=self.permutations, seed=self.seed,
                instruction=self.instruction,
            )  # fmt: skip
        else:
            chosen = find_vote_winner(made, weighted=self.judge == "weighted")
        return drafts.finish(outcomes[chosen], made[chosen])

    def _ask_for_samples(self, source: Conversation | Node, drafts: Drafts) -> list[Ask]:
        n = drafts.calls_left(self.n)
        inner = None if self.inner is None else resolve_mode(self.inner)
        if inner is not None and not hasattr(inner, "policy"):  # it asks for more than one answer
            return [Run(inner, source) for _ in range(n)]
        policy = None if inner is None else find_policy(inner)
        warm = Sampling(self.temperature, self.top_k, self.top_p)
        if not self.greedy_first:
            return [Generate(source, n, sampling=warm, policy=policy)]
        asks: list[Ask] = [Generate(source, sampling=Sampling(temperature=0.0), policy=policy)]
        return asks if n == 1 else [*asks, Generate(source, n - 1, sampling=warm, policy=policy)]


def find_vote_winner(drafts: Sequence[Draft], *, weighted: bool) -> int:
    """The place of the most confident draft among those that give the answer with the most votes.

    Drafts without an answer do not vote; if none has one, the most confident draft wins.
    """
    votes: dict[str, float] = defaultdict(float)
    surest: dict[str, float] = defaultdict(float)
    for draft in drafts:
        if draft.answer is not None:
            votes[draft.answer] += draft.confidence if weighted else 1
            surest[draft.answer] = max(surest[draft.answer], draft.confidence)
    winner = max(votes, key=lambda answer: (votes[answer], surest[answer])) if votes else None
    places = [i for i, draft in enumerate(drafts) if draft.answer == winner]
    return max(places, key=lambda i: (drafts[i].confidence, -i))


def pick_by_model(
    source: Conversation | Node,
    made: Sequence[Draft],
    form: AnswerFormat,
    drafts: Drafts,
    *,
    group: int = 3,
    permutations: int = 1,
    seed: int = 0,
    instruction: str = PICK,
) -> Generator[list[Ask], list[Any], int]:
    """Show the distinct answers to the model until one is left; returns the place of its draft."""
    best = {draft.answer: i for i, draft in sorted(enumerate(made), key=lambda each: each[1].confidence)}
    places = sorted(i for answer, i in best.items() if answer is not None)
    random = Random(seed)
    while len(places) > 1 and not drafts.is_spent:
        random.shuffle(places)
        groups = [places[i : i + group] for i in range(0, len(places), group)]
        contested = [each for each in groups if len(each) > 1]
        orders = [random.sample(each, len(each)) for each in contested for _ in range(permutations)]
        outcomes = yield [
            Generate(
                show_candidates(source, [made[i].text for i in order], instruction),
                sampling=Sampling(temperature=0.0),
            )
            for order in orders
        ]
        places = [each[0] for each in groups if len(each) == 1]
        for number, each in enumerate(contested):
            replies = []
            for outcome in outcomes[number * permutations : (number + 1) * permutations]:
                replies.append(drafts.add("judge", outcome, 0.0))
            places.append(_read_pick(replies, each, made))
    return places[0] if places else find_vote_winner(made, weighted=False)


def show_candidates(
    source: Conversation | Node, shown: Sequence[str], instruction: str = PICK
) -> Conversation | Node:
    """What the model is asked to choose from: the question and the answers, numbered in their order."""
    listed = "\n".join(f"Answer {number}: {text.strip()}" for number, text in enumerate(shown, 1))
    if isinstance(source, Node):
        return source.user(instruction.replace("{question}", "").replace("{candidates}", listed).strip())
    text = instruction.replace("{question}", question_of(source)).replace("{candidates}", listed)
    return replace_question(source, text)


def _read_pick(replies: Sequence[Draft], places: Sequence[int], made: Sequence[Draft]) -> int:
    """The candidate that most replies name; one that no reply names is found by the vote of all drafts."""
    counts = [(sum(reply.answer == made[i].answer for reply in replies), i) for i in places]
    most = max(count for count, _ in counts)
    named = [i for count, i in counts if count == most] if most else list(places)
    votes = {i: sum(draft.answer == made[i].answer for draft in made) for i in named}
    return max(named, key=lambda i: (votes[i], made[i].confidence, -i))
