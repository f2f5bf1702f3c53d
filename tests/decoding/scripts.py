"""Random scripts for comparing policies: settings, and a model whose logits depend on all it has been shown.

A script's model sees the hint, whether this is the second question, and the ids of the answer so far. What
it says is a pure function of these, of the temperature and of the noise, which is keyed by (script, second
question, position, attempt): nothing depends on a library's random numbers.

    outcome = run_released(Script.make(7))      # Outcome(ids=(9, 10, 5), calls=4)
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.policy import Finish, Policy, Rewind, Segment
from reverse.decoding.policies.released_policy import FORMAT_ERROR, ReleasedPolicy
from reverse.tokens.spans import TokenIds

SPAN, CN, UN, EOS, DOT, SPACE_DOT, BLANK, MARK = range(8)
TAGS = TokenIds(SPAN, CN, UN)
TEXTS = ("<SPAN>", "</CN>", "</UN>", "</s>", ".", " .", " ", "!", "3", "5", *(f" {c}" for c in "aAbcde"))
SIZE = len(TEXTS)  # ids that a model says; those below are only inserted
FORMAT_ERROR_ID, FALLBACK_ID = SIZE, SIZE + 1


def decode(ids: Sequence[int]) -> str:
    """The text of ids, tags included, without EOS."""
    return "".join(FORMAT_ERROR if i == FORMAT_ERROR_ID else TEXTS[i] for i in ids if i != EOS)


def join_hints(phrases: Sequence[str]) -> str:
    """A hint's phrases as one text without tags, blanks and case: two ways of writing it are equal."""
    text = ",".join(phrases)
    for tag in TEXTS[:3]:
        text = text.lower().replace(tag.lower(), "")
    return "".join(text.split())


def visible_ids(text: str) -> tuple[int, ...]:
    """The ids of what a text shows, blanks left out: the text clean-up of the published code changes them."""
    ids = {shown.strip(): i for i, shown in reversed(list(enumerate(TEXTS))) if shown.strip()}
    return tuple(ids[letter] for letter in "".join(text.split()))


def draw(*key: object) -> tuple[float, ...]:
    """SIZE numbers in (0, 1), uniform and independent between different keys."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4 * SIZE).digest()
    return tuple((int.from_bytes(digest[i : i + 4], "little") + 0.5) / 2**32 for i in range(0, 4 * SIZE, 4))


@lru_cache(maxsize=100_000)
def draw_logistic(*key: object) -> tuple[float, ...]:
    return tuple(1.5 * math.log(u / (1 - u)) for u in draw(*key))


@lru_cache(maxsize=10_000)
def draw_gumbel(*key: object) -> tuple[float, ...]:
    return tuple(-math.log(-math.log(u)) for u in draw(*key))


@dataclass(frozen=True)
class Script:
    """One random script: the settings that both sides decode with, and how its model leans."""

    seed: int
    threshold: float
    local_attempts: int
    max_attempts: int
    temperature: float
    temperature_step: float
    max_new_tokens: int
    open_ended: bool
    hears_hints: bool  # what the model says depends on the hint
    strictness: float  # how much it dislikes tags where they may not stand
    doubt: float  # how much it likes </UN>
    haste: float  # how much it likes to end the text

    @classmethod
    def make(cls, seed: int) -> "Script":
        at = iter(draw("script", seed))

        def pick(*options):
            return options[int(next(at) * len(options))]

        return cls(
            seed,
            threshold=pick(0.003, 0.02, 0.1, 0.3, 0.5),
            local_attempts=pick(1, 2, 3, 10),
            max_attempts=pick(2, 8, 20, 50, 50),
            temperature=pick(0.0, 0.0, 0.7, 1.0),
            temperature_step=pick(0.05, 0.1),
            max_new_tokens=pick(5, 20, 40, 60, 60),
            open_ended=pick(False, True),
            hears_hints=pick(False, True),
            strictness=pick(0.0, 2.0, 5.0, 8.0, 8.0),
            doubt=pick(-5.0, -4.0, -2.0, -1.0, 1.0),
            haste=pick(-4.0, -2.0, -1.0, 0.0),
        )

    def config(self) -> ResamplingConfig:
        return ResamplingConfig(
            threshold=self.threshold,
            local_attempts=self.local_attempts,
            max_attempts=self.max_attempts,
            temperature_step=self.temperature_step,
            open_ended=self.open_ended,
        )

    def logits(self, ids: tuple[int, ...], hint: str | None, is_second: bool) -> list[float]:
        """SIZE logits of the id after `ids`; `hint` as from `join_hints`, None without one."""
        heard = hint if self.hears_hints else None
        row = list(draw_logistic(self.seed, ids, heard, is_second))
        row[UN] += self.doubt
        if next((i for i in reversed(ids) if i in (SPAN, CN, UN)), None) == SPAN:
            row[SPAN] -= self.strictness
            row[EOS] -= self.strictness
            row[CN] += 2.0
            row[UN] += 2.0
        else:
            row[CN] -= self.strictness
            row[UN] -= self.strictness
            row[SPAN] += 2.5
            row[EOS] += self.haste
        return row

    def choose(
        self, logits: Sequence[float], temperature: float, position: int, attempt: int, is_second: bool
    ) -> int:
        """The id chosen: the most probable one at temperature 0, else that of the largest noisy logit."""
        if temperature == 0:
            return max(range(SIZE), key=logits.__getitem__)
        noise = draw_gumbel("noise", self.seed, is_second, position, attempt)
        noisy = [x / temperature + y for x, y in zip(logits, noise, strict=True)]
        return max(range(SIZE), key=noisy.__getitem__)


@dataclass(frozen=True)
class Outcome:
    """What a script ends with: the visible ids of its text, and how often `generate()` was called."""

    ids: tuple[int, ...]
    calls: int


def run_policy(script: Script, policy: Policy, is_second: bool = False) -> Finish:
    """Drive a policy with a script's model, one id after the other, until it finishes."""
    action, temperature, hint = policy.begin(), script.temperature, None
    while not isinstance(action, Finish):
        if isinstance(action, Rewind):
            assert action.to == len(policy.answer.ids)
            temperature = action.temperatures[0]
            hint = join_hints([decode(ids) for ids in action.hints]) if action.hints else None
        else:
            temperature = action.temperature
        assert action.max_tokens is not None
        action = policy.next(
            _decode_segment(script, policy, temperature, hint, is_second, action.attempt, action.max_tokens)
        )
    return action


def _decode_segment(script, policy, temperature, hint, is_second, attempt, max_tokens) -> Segment:
    before, said = tuple(policy.answer.ids), []
    while True:
        logits = script.logits((*before, *said), hint, is_second)
        position = len(before) + len(said)
        said.append(script.choose(logits, temperature, position, attempt, is_second))
        if said[-1] in TAGS.closing:
            weights = [math.exp(x - max(logits)) for x in logits]
            return Segment(tuple(said), "phrase", weights[UN] / sum(weights))
        if said[-1] == EOS:
            return Segment(tuple(said), "eos")
        if len(said) == max_tokens:
            return Segment(tuple(said), "length")


def make_policy(
    script: Script, is_second: bool = False, kind: type[ReleasedPolicy] = ReleasedPolicy
) -> ReleasedPolicy:
    return kind(
        script.config(),
        TAGS,
        script.max_new_tokens,
        script.temperature,
        full_stop=DOT,
        decode=decode,
        format_error=(FORMAT_ERROR_ID,),
        blank_answer=(FALLBACK_ID,) if is_second else (),
    )


def shown_ids(ids: Sequence[int]) -> tuple[int, ...]:
    """The visible ids of an answer."""
    if tuple(ids) == (FALLBACK_ID,):
        return (FALLBACK_ID,)
    return visible_ids(decode([i for i in ids if i not in tuple(TAGS)]))


def run_released(script: Script) -> Outcome:
    """The script through `ReleasedPolicy`, with the second question after a blank answer."""
    policy = make_policy(script)
    run_policy(script, policy)
    calls = policy.calls
    if script.open_ended and not shown_ids(policy.answer.ids):
        policy = make_policy(script, is_second=True)
        run_policy(script, policy, is_second=True)
        calls += policy.calls
    return Outcome(shown_ids(policy.answer.ids), calls)
