"""Choose one of several drafts: by confidence, by votes, or by the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from random import Random
from typing import Any

from reverse.decoding.asks import Ask, Conversation, Generate, Node, Sampling
from reverse.decoding.result import Draft
from reverse.modes.mode import Drafts, question_of, replace_question

__all__ = ["PICK", "find_most_confident", "find_vote_winner", "pick_by_model", "show_candidates"]

PICK = (
    "{question}\nHere are answers that were given:\n{candidates}\n"
    "One of them is right. Give the right final answer."
)


def find_most_confident(drafts: Sequence[Draft]) -> int:
    """Return the index of the most confident draft; of equal ones the first."""
    return max(range(len(drafts)), key=lambda i: (drafts[i].confidence, -i))


def find_vote_winner(drafts: Sequence[Draft], *, weighted: bool) -> int:
    """Return the index of the most confident draft among those with the most frequent answer.

    Drafts without an answer do not vote; if no draft has one, the most confident draft wins.
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
    drafts: Drafts,
    *,
    group: int = 3,
    permutations: int = 1,
    seed: int = 0,
    instruction: str = PICK,
) -> Generator[list[Ask], list[Any], int]:
    """Show the distinct answers to the model until one is left; return the index of its draft.

    If the budget is used up earlier, the vote of all drafts decides among the remaining ones.
    """
    best = {draft.answer: i for i, draft in sorted(enumerate(made), key=lambda each: each[1].confidence)}
    texts = [draft.text for draft in made]
    # Of equal texts the first one: rounding of their confidence would decide the order of the candidates.
    places = sorted(texts.index(texts[i]) for answer, i in best.items() if answer is not None)
    random, round = Random(seed), 0
    while len(places) > 1:
        random.shuffle(places)
        groups = [places[i : i + group] for i in range(0, len(places), group)]
        contested = [each for each in groups if len(each) > 1]
        orders = [random.sample(each, len(each)) for each in contested for _ in range(permutations)]
        if drafts.is_spent or drafts.calls_left(len(orders)) < len(orders):
            break
        outcomes = yield [
            Generate(
                show_candidates(source, [made[i].text for i in order], instruction),
                sampling=Sampling(temperature=0.0),
                role="judge",
                round=round,
            )
            for order in orders
        ]
        round += 1
        places = [each[0] for each in groups if len(each) == 1]
        for number, each in enumerate(contested):
            replies = []
            for outcome in outcomes[number * permutations : (number + 1) * permutations]:
                replies.append(drafts.add("judge", outcome, 0.0))
            places.append(_read_pick(replies, each, made))
    return _find_most_voted(places, made) if places else find_vote_winner(made, weighted=False)


def show_candidates(
    source: Conversation | Node, shown: Sequence[str], instruction: str = PICK
) -> Conversation | Node:
    """Write the text that asks the model to choose: the question and the numbered answers."""
    listed = "\n".join(f"Answer {number}: {text.strip()}" for number, text in enumerate(shown, 1))
    if isinstance(source, Node):
        return source.user(instruction.replace("{question}", "").replace("{candidates}", listed).strip())
    text = instruction.replace("{question}", question_of(source)).replace("{candidates}", listed)
    return replace_question(source, text)


def _read_pick(replies: Sequence[Draft], places: Sequence[int], made: Sequence[Draft]) -> int:
    """Return the candidate that most replies name; if no reply names one, the vote of all drafts decides."""
    counts = [(sum(reply.answer == made[i].answer for reply in replies), i) for i in places]
    most = max(count for count, _ in counts)
    return _find_most_voted([i for count, i in counts if count == most] if most else places, made)


def _find_most_voted(places: Sequence[int], made: Sequence[Draft]) -> int:
    """Return the index whose answer most drafts give; of equal ones the most confident."""
    votes = {i: sum(draft.answer == made[i].answer for draft in made) for i in places}
    return max(places, key=lambda i: (votes[i], made[i].confidence, -i))
