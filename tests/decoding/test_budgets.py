"""Each setting that bounds an answer or says how it ends: what it does, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.plain_policy import PlainPolicy
from reverse.decoding.policies.policy import Finish, Rewind, Segment
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.decoding.verifier import Verifier
from tests.decoding.actions import continues, rewinds
from tests.decoding.mock import CN, DOT, SPAN, TAGS, UN, hashed, run

A, B, C, D = 6, 7, 8, 9


def policy(max_new_tokens=100, temperature=0.0, **settings):
    return ResamplePolicy(
        ResamplingConfig(**{"threshold": 0.5} | settings), TAGS, max_new_tokens, temperature
    )


def phrase(*words, p=0.0, close=CN, before=(), ends=(), stop=False):
    return Segment((*before, SPAN, *words, close), "phrase", p, tuple(ends), stop)


# ---------------------------------------------------------------------- seconds
def test_seconds_are_used_up_like_attempts():
    """A caller with a deadline would wait for fifty attempts all the same."""
    one = policy(max_seconds=2.0)
    assert isinstance(one.next(replace(phrase(A, p=0.6), seconds=1.0)), Rewind)
    assert one.next(replace(phrase(B, p=0.9), seconds=2.0)) == continues(0.0)  # the best of both is kept
    assert one.answer.ids == [SPAN, A, CN] and one.answer.resolved is False
    assert one.next(replace(phrase(C, p=0.9), seconds=0.0)) == continues(0.0)  # used up for good
    assert (one.rejections, len(one.answer.ids)) == (2, 6)


def test_seconds_spent_on_good_phrases_count():
    """A late first doubt would still be resampled past the deadline."""
    one = policy(max_seconds=2.0)
    one.next(replace(phrase(A), seconds=2.5))
    assert one.next(replace(phrase(B, p=0.9), seconds=2.6)) == continues(0.0)
    assert one.answer.attempts == [] and one.answer.resolved is False


@pytest.mark.parametrize("budget", ["max_seconds", "max_extra_tokens", "max_attempts"])
def test_a_budget_of_nothing_checks_and_never_corrects(budget):
    """0 would be taken for "no limit"."""
    one = policy(**{budget: 0})
    assert one.next(phrase(A, p=0.9)) == continues(0.0)
    assert (one.answer.attempts, one.answer.resolved) == ([], False)


@pytest.mark.parametrize("on_exhausted, action", [("best", continues(0.0)), ("drop", Finish("dropped"))])
@pytest.mark.parametrize("budget", [{"max_seconds": 1.0}, {"max_extra_tokens": 6}])
def test_on_exhausted_decides_when_a_budget_is_used_up(on_exhausted, action, budget):
    """Only N would ask `on_exhausted`; a budget would cut the answer or loop for ever."""
    one = policy(on_exhausted=on_exhausted, **budget)
    one.next(replace(phrase(A, before=(D,)), seconds=0.1))
    assert isinstance(one.next(replace(phrase(B, p=0.9), seconds=0.2)), Rewind)
    assert one.next(replace(phrase(C, p=0.8), seconds=1.0)) == action
    kept = [SPAN, C, CN] if on_exhausted == "best" else []
    assert one.answer.ids == [D, SPAN, A, CN, *kept] and one.answer.resolved is False


# ---------------------------------------------------------------------- tokens
def test_extra_tokens_are_those_taken_back():
    """The budget would count kept text, or not what an attempt threw away."""
    one = policy(max_extra_tokens=7)
    one.next(phrase(A, A, A, A, A))
    assert isinstance(one.next(phrase(B, p=0.9)), Rewind)
    assert one.budget.discarded == 3
    assert isinstance(one.next(phrase(B, p=0.8)), Rewind)
    assert one.budget.discarded == 6
    assert one.next(phrase(B, p=0.9)) == continues(0.0)  # 9: the best is restored, and 3 of them are kept
    assert one.budget.discarded == 6
    assert one.next(phrase(C, p=0.9)) == continues(0.0)
    assert len(one.answer.attempts) == 3


def test_escalation_stays_within_the_budget():
    """One escalation would throw away half an answer that the budget was to protect."""
    said = [phrase(A), phrase(A, A, A, before=(DOT,), ends=(1,))]

    def last(budget):
        one = policy(local_attempts=1, commit="answer", max_extra_tokens=budget)
        for segment in said:
            one.next(segment)
        return one.next(phrase(D, p=0.9)), one

    action, one = last(8)
    assert action == rewinds(4, 0.1, ((D,),)) and one.budget.discarded == 8
    action, one = last(7)  # 3 for the phrase, 5 for what stands before it
    assert action == continues(0.0) and one.answer.ids[-3:] == [SPAN, D, CN]
    assert one.is_exhausted is False  # stuck here; later phrases are corrected


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 30),
    st.sampled_from(["best", "drop"]),
    st.sampled_from(["phrase", "sentence", "answer"]),
    st.sampled_from([1, 3]),
)
def test_never_more_than_the_budget_and_one_segment(salt, budget, on_exhausted, commit, candidates):
    """A promised bound on the cost of an answer would not hold."""
    longest = 0

    class Watched(ResamplePolicy):
        def next(self, segment):
            nonlocal longest
            longest = max(longest, len(segment.ids))
            return super().next(segment)

    config = ResamplingConfig(
        threshold=0.05,
        max_extra_tokens=budget,
        on_exhausted=on_exhausted,
        commit=commit,
        local_attempts=3,
        candidates=candidates,
    )
    result, one = run(hashed(salt), config, 40, 0.7, factory=Watched)
    unused = (candidates - 1) * 40  # at most, of sisters that nobody looked at
    assert one.budget.discarded <= budget + longest + unused
    assert result.usage.discarded <= budget + 2 * longest + unused  # the segment that the end cut off, too


# ---------------------------------------------------------------------- stops
def test_stop_outside_a_phrase_ends_the_answer():
    """A stop string would be decoded past."""
    one = policy()
    one.next(phrase(A))
    assert one.next(Segment((B, DOT), "stop")) == Finish("stop")
    assert one.answer.ids == [SPAN, A, CN, B, DOT] and one.answer.resolved is True


def test_stop_inside_a_phrase_waits_for_its_acceptance():
    """A phrase that is taken back would have ended the answer, or an accepted one not."""
    one = policy()
    assert isinstance(one.next(phrase(A, p=0.9, stop=True)), Rewind)
    assert one.next(phrase(B)) == continues(0.0)
    assert one.next(phrase(C, stop=True)) == Finish("stop")
    assert one.answer.ids == [SPAN, B, CN, SPAN, C, CN]


def test_a_restored_phrase_may_hold_the_stop():
    """The stop inside a phrase that `"best"` restores would be forgotten."""
    one = policy(local_attempts=2)
    one.next(phrase(A, p=0.6, stop=True))
    assert one.next(phrase(B, p=0.9)) == Finish("stop")
    assert one.answer.ids == [SPAN, A, CN]


def test_being_stopped_inside_a_phrase_cuts_it():
    """`max_time` would leave a phrase open, or count as an attempt."""
    one = policy()
    one.next(phrase(A))
    assert one.next(Segment((DOT, B, SPAN, C), "stop", None, (1,))) == Finish("stop")
    assert one.answer.ids == [SPAN, A, CN, DOT] and (one.rejections, one.answer.resolved) == (0, True)


def test_unchecked_text_is_final_at_once_and_stops():
    """A stream of plain decoding would hold everything back, or run past a stop."""
    one = PlainPolicy(ResamplingConfig(threshold=0.5), TAGS, 100)
    assert one.next(phrase(A, p=0.9, close=UN)) == continues(0.0)
    assert one.answer.committed_length == len(one.answer.ids) == 3
    assert one.next(phrase(A, stop=True)) == Finish("stop")


# ---------------------------------------------------------------------- the other dials
@pytest.mark.parametrize(
    "k, n, failures, expected",
    [
        (10, 50, 0, (0.0, 0.1, 0.2, 0.3)),
        (10, 50, 2, (0.2, 0.3, 0.4, 0.5)),
        (10, 50, 4, (0.4, 0.5, 0.5, 0.5)),  # the rise has its cap
        (3, 50, 1, (0.1, 0.2)),
        (10, 3, 1, (0.1, 0.2)),
        (10, 0, 0, (0.0,)),
    ],
)
def test_upcoming_temperatures(k, n, failures, expected):
    """Candidates would be sampled hotter or colder than the attempts they stand for, or past K and N."""
    one = policy(local_attempts=k, max_attempts=n)
    for _ in range(failures):
        one.next(phrase(A, p=0.9))
    assert one.next_temperatures(4) == pytest.approx(expected)
    assert one.next_temperatures(1) == expected[:1]
    assert one.next_temperatures(1) == (one.temperature,)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.integers(0, 12))
def test_upcoming_is_what_the_attempts_get(k, n, m, failures):
    """Side by side and one after the other would sample at different temperatures."""
    one = policy(local_attempts=k, max_attempts=n, temperature_rise=0.25, commit="phrase")
    for _ in range(failures):
        if not isinstance(one.next(phrase(A, p=0.9)), Rewind):
            return
    promised = one.next_temperatures(m)
    for i, temperature in enumerate(promised):
        assert one.temperature == pytest.approx(temperature)
        action = one.next(phrase(A, p=0.9))
        assert isinstance(action, Rewind) or i == len(promised) - 1


def test_attempts_are_counted_per_answer():
    """N would be a limit per phrase: K·phrases attempts instead of N."""
    one = policy(max_attempts=3)
    for _ in range(2):
        assert isinstance(one.next(phrase(A, p=0.9)), Rewind)
        one.next(phrase(B))
    assert one.next(phrase(C, p=0.9)) == continues(0.0) and one.is_exhausted


@pytest.mark.parametrize(
    "check, score, suspect", [("closing", "softmax", False), ("every_token", "softmax", True)]
)
def test_check_decides_where_p_is_read(check, score, suspect):
    """check="every_token" would be accepted and do nothing."""
    ids, ps = (D, SPAN, A, CN), (0.99, 0.0, 0.7, 0.1)
    p = Verifier(TAGS, score, check).read_phrase(ids, ps)
    assert isinstance(policy().next(Segment(ids, "phrase", p)), Rewind) is suspect


@pytest.mark.parametrize("score, suspect", [("softmax", False), ("pair", True)])
def test_score_decides_what_p_means(score, suspect):
    """score="pair" would be accepted and do nothing: both tags may be improbable."""
    logits = torch.tensor([[0.0] * 16])
    logits[0, [CN, UN, B]] = torch.tensor([5.0, 5.2, 6.0])
    p = float(Verifier(TAGS, score).p(logits))
    assert isinstance(policy().next(phrase(A, p=p)), Rewind) is suspect


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    "name, value, message",
    [
        ("max_seconds", -1, "a finite number of at least 0, got -1: leave it out for no limit"),
        ("max_seconds", math.inf, "a finite number of at least 0, got inf: leave it out"),
        ("max_seconds", "5", "a finite number of at least 0, got '5'"),
        ("max_extra_tokens", -1, "a whole number of at least 0, got -1: leave it out for no limit"),
        ("max_extra_tokens", 1.5, "a whole number of at least 0, got 1.5"),
        ("max_attempts", None, "a whole number of at least 0, got None: 0 checks and never corrects"),
        ("max_attempts", True, "a whole number of at least 0, got True"),
        ("local_attempts", 0, "a whole number of at least 1, got 0"),
        ("candidates", 0, "a whole number of at least 1, got 0: 1 tries one continuation after the other"),
        ("hints", -1, "a whole number of at least 0, got -1: 0 turns hints off"),
        ("top_k", -1, "a whole number of at least 0, got -1: 0 keeps every token"),
        ("temperature_step", math.nan, "a finite number of at least 0, got nan"),
        ("temperature_step", None, "a finite number of at least 0, got None"),
        ("commit", "word", "one of phrase, sentence, answer, got 'word'"),
        ("check", None, "one of closing, every_token, got None"),
        ("score", "logit", "one of softmax, pair, got 'logit'"),
        ("open_ended", "yes", "True or False, got 'yes'"),
    ],
)
def test_settings_out_of_range(name, value, message):
    """A wrong setting would be found out after minutes of decoding, or never."""
    with pytest.raises(ValueError) as caught:
        ResamplingConfig(**{name: value})
    assert str(caught.value).startswith(f"{name} must be {message}")
