"""The policy row by row of its table, then its invariants for models drawn by hypothesis."""

import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies import make_policy_factory
from reverse.decoding.policies.policy import Continue, Finish, Rewind, Segment
from reverse.decoding.policies.resample_policy import ResamplePolicy
from tests.decoding import mock
from tests.decoding.actions import continues, rewinds
from tests.decoding.mock import CN, DOT, EOS, SPAN, TAGS, UN, always, hashed, run

A, B, C, D = 6, 7, 8, 9


def policy(max_new_tokens=100, temperature=0.0, **settings):
    return ResamplePolicy(
        ResamplingConfig(**{"threshold": 0.5} | settings), TAGS, max_new_tokens, temperature
    )


def phrase(*words, p=0.0, close=CN, before=(), ends=()):
    return Segment((*before, SPAN, *words, close), "phrase", p, tuple(ends))


# ---------------------------------------------------------------------- accepting and rejecting
def test_confident_phrase_is_accepted():
    """An accepted phrase would be decoded again, or raise the temperature of what follows."""
    one = policy()
    assert one.next(phrase(A, p=0.5)) == continues(0.0)
    assert one.answer.ids == [SPAN, A, CN]
    assert (one.answer.resolved, one.local_failures, one.rejections) == (True, 0, 0)


def test_suspect_phrase_is_taken_back_and_hinted():
    """A rejected phrase would stay in the answer, or not be named to the model."""
    one = policy()
    one.next(phrase(A))
    assert one.next(phrase(B, C, p=0.51, before=(D,))) == rewinds(3, 0.1, ((B, C),))
    assert one.answer.ids == [SPAN, A, CN]


def test_chosen_un_is_a_rejection_whatever_its_p():
    """A `</UN>` the model itself wrote below the threshold would be taken for confidence."""
    one = policy()
    assert one.next(phrase(A, p=0.01, close=UN)) == rewinds(0, 0.1, ((A,),))


def test_sentence_end_inside_the_segment_is_a_checkpoint():
    """Text that was not in question would be thrown away with the phrase after it."""
    one = policy()
    segment = phrase(B, p=0.9, before=(A, DOT, C), ends=[2])
    assert one.next(segment) == rewinds(2, 0.1, ((B,),))
    assert one.answer.ids == [A, DOT]


def test_paper_rewinds_to_phrase_ends_only():
    """`.paper()` would not be the published algorithm, which knows no sentence checkpoints."""
    config = ResamplingConfig.paper(threshold=0.5)
    one = make_policy_factory(config)(config, TAGS, 100, 0.0)
    one.next(phrase(A))
    assert one.next(phrase(B, p=0.9, before=(DOT, C), ends=[1])) == rewinds(3, 0.1, ((B,),))


def test_temperature_rises_by_steps_to_its_cap_and_falls_back():
    """Attempts would repeat the same greedy phrase, or boil the text without limit."""
    one = policy(temperature=0.2, local_attempts=20)
    seen = [one.next(phrase(A, p=0.9)).temperatures[0] for _ in range(7)]
    assert seen == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.7, 0.7])
    assert one.next(phrase(A)) == continues(0.2)


def test_hints_keep_their_order_without_repeats():
    """The hint would name one phrase five times instead of five phrases."""
    one = policy()
    for words in ((A,), (B,), (A,), (C,)):
        action = one.next(phrase(*words, p=0.9))
    assert action.hints == ((A,), (B,), (C,))


# ---------------------------------------------------------------------- escalation
def test_k_failures_go_back_one_sentence_then_one_more():
    """The published defect: back-off that moves one sentence and then sticks."""
    one = policy(local_attempts=2, commit="answer")
    one.next(phrase(A))  # 0..3
    one.next(phrase(B, before=(DOT,), ends=[1]))  # "." is 3, ends at 4
    one.next(phrase(C, before=(DOT,), ends=[1]))  # "." is 7, ends at 8; phrase ends at 11
    assert one.sentence_ends == [4, 8]
    assert one.next(phrase(D, p=0.9)).to == 11
    assert one.next(phrase(D, p=0.9)) == rewinds(8, 0.1, ((D,),))
    assert (one.level, one.local_failures) == (1, 0)
    one.next(phrase(D, p=0.9))
    assert one.next(phrase(D, p=0.9)).to == 4
    one.next(phrase(D, p=0.9))
    assert one.next(phrase(D, p=0.9)).to == 0
    assert one.level == 3
    one.next(phrase(D, p=0.9))
    assert one.next(phrase(D, p=0.9)) == continues(0.0)  # stuck: the best was kept
    assert one.answer.resolved is False


def test_level_falls_back_once_the_place_is_passed():
    """Later trouble would go back several sentences at once."""
    one = policy(local_attempts=1)
    one.next(phrase(A))
    one.next(phrase(B, before=(DOT,), ends=[1]))
    assert one.next(phrase(C, p=0.9)).to == 4
    one.next(phrase(D))  # ends at 7, the place it was stuck at: not passed
    assert one.level == 1
    one.next(phrase(D))
    assert one.level == 0


@pytest.mark.parametrize("commit, reached", [("phrase", None), ("sentence", 8), ("answer", 0)])
def test_commit_bounds_escalation(commit, reached):
    """A stream would take back text it has shown."""
    one = policy(local_attempts=1, commit=commit)
    for before, ends in (((), ()), ((DOT,), (1,)), ((DOT,), (1,))):
        one.next(phrase(A, before=before, ends=ends))
    targets = []
    while isinstance(action := one.next(phrase(D, p=0.9)), Rewind):
        targets.append(action.to)
    assert (targets[-1] if targets else None) == reached
    assert isinstance(action, Continue)


# ---------------------------------------------------------------------- stuck and exhausted
def test_best_keeps_the_least_suspect_candidate():
    """The answer would keep the worst phrase, lose it, or leave it open."""
    one = policy(local_attempts=3)
    one.next(phrase(A, p=0.9))
    one.next(phrase(B, p=0.6, close=UN))
    assert one.next(phrase(C, p=0.8)) == continues(0.0)
    assert one.answer.ids == [SPAN, B, CN]
    assert one.answer.spans[0].p == 0.6 and not one.answer.spans[0].accepted
    assert one.answer.resolved is False
    assert isinstance(one.next(phrase(D, p=0.9)), Rewind)  # later phrases are corrected as before


def test_best_prefers_the_longest_prefix():
    """A phrase from before an escalation would cut text that was accepted since."""
    one = policy(local_attempts=1)
    one.next(phrase(A))
    one.next(phrase(B, before=(DOT,), ends=[1]))
    one.next(phrase(C, p=0.9))  # at 7, then back to 4
    one.next(phrase(D, p=0.6))  # at 4, nowhere further to go
    assert one.answer.ids == [SPAN, A, CN, DOT, SPAN, B, CN, SPAN, C, CN]


def test_exhausted_keeps_every_later_suspect():
    """After N attempts the answer would end, or go on being resampled for ever."""
    one = policy(max_attempts=1)
    assert one.next(phrase(A, p=0.9)) == continues(0.0)
    assert one.next(phrase(B, p=0.9, close=UN)) == continues(0.0)
    assert one.answer.ids == [SPAN, A, CN, SPAN, B, CN]
    assert (one.rejections, one.answer.resolved) == (1, False)
    assert one.next(Segment((SPAN, C, EOS), "eos")) == continues(0.0)
    assert one.answer.ids[-3:] == [SPAN, C, CN]


def test_no_attempts_checks_and_never_corrects():
    """N = 0 would still resample."""
    one = policy(max_attempts=0)
    assert one.next(phrase(A, p=0.9)) == continues(0.0)
    assert (one.answer.attempts, one.answer.resolved) == ([], False)


@pytest.mark.parametrize("settings", [{"max_attempts": 1}, {"local_attempts": 1, "commit": "phrase"}])
def test_drop_ends_at_the_last_checkpoint(settings):
    """A dropped phrase would leave the words that led up to it, or take a whole sentence with it."""
    one = policy(on_exhausted="drop", **settings)
    one.next(phrase(A))
    assert one.next(phrase(B, p=0.9, before=(DOT, C), ends=[1])) == Finish("dropped")
    assert one.answer.ids == [SPAN, A, CN, DOT]
    assert one.answer.resolved is False


# ---------------------------------------------------------------------- ends
def test_length_inside_a_phrase_is_no_attempt():
    """An open phrase would be left at the end, or an attempt be counted for a full answer."""
    one = policy(max_new_tokens=6)
    one.next(phrase(A))
    assert one.next(Segment((DOT, SPAN, B), "length", None, (1,))) == Finish("length")
    assert one.answer.ids == [SPAN, A, CN, DOT]
    assert (one.rejections, one.answer.resolved) == (0, True)


def test_end_inside_a_phrase_is_an_attempt_without_a_hint():
    """A half phrase would be taught to the model as wrong, or be returned open."""
    one = policy()
    assert one.next(Segment((SPAN, A, EOS), "eos")) == rewinds(0, 0.1, ())
    assert one.answer.attempts[0].kind == "unclosed"


def test_full_answer_ends_by_length():
    """The loop would ask the model for ids there is no room for."""
    one = policy(max_new_tokens=3)
    assert one.next(phrase(A)) == Finish("length")


def test_nan_is_refused():
    """NaN > threshold is False: a broken model would pass every check."""
    with pytest.raises(ValueError, match="not finite"):
        policy().next(phrase(A, p=math.nan))


# ---------------------------------------------------------------------- adversarial models
POLICIES = ("best", "drop")
ADVERSARIES = {
    "always </UN>": always(SPAN, A, UN),
    "never closes": always(SPAN, A, B, C),
    "closes without opening": always(CN, UN, A),
    "only end of text": always(EOS),
    "ends inside a phrase": always(A, SPAN, EOS),
    "empty phrases": always(SPAN, UN),
}


# What becomes of each: finish reason, text and `resolved`.
DROPPED = ("dropped", "", False)
OUTCOMES = {
    "always </UN>": {
        "best": ("length", " a" * 6, False), "drop": DROPPED,
    },
    "ends inside a phrase": {
        "best": ("length", "a" + " a" * 5, False), "drop": DROPPED,
    },
    "empty phrases": {"best": ("length", "", False), "drop": DROPPED},
    "never closes": dict.fromkeys(POLICIES, ("length", "", True)),
    "closes without opening": dict.fromkeys(POLICIES, ("length", "a" + " a" * 5, True)),  # closing is masked
    "only end of text": dict.fromkeys(POLICIES, ("eos", "", True)),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("on_exhausted", POLICIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_ends_for_adversaries(name, on_exhausted, temperature):
    """A model that never says anything acceptable would hang the caller, or get what was not decided."""
    config = ResamplingConfig(threshold=0.2, on_exhausted=on_exhausted, max_attempts=12, local_attempts=3)
    result, one = run(ADVERSARIES[name], config, 20, temperature)
    assert one.rejections <= 12 and len(result.ids) <= 20
    outcome = (result.finish_reason, result.text, result.resolved)
    if temperature and name in ("never closes", "closes without opening"):  # the mask leaves it to chance
        assert outcome[0] in ("length", "eos") and outcome[2] is True
    else:
        assert outcome == OUTCOMES[name][on_exhausted]


# ---------------------------------------------------------------------- invariants
configs = st.builds(
    ResamplingConfig,
    threshold=st.sampled_from([0.02, 0.2, 0.6, 1.0]),
    local_attempts=st.integers(1, 4),
    max_attempts=st.integers(0, 12),
    temperature_step=st.sampled_from([0.0, 0.1, 0.5]),
    commit=st.sampled_from(["phrase", "sentence", "answer"]),
    on_exhausted=st.sampled_from(["best", "drop"]),
    check=st.sampled_from(["closing", "every_token"]),
    policy=st.sampled_from(["resample", "paper"]),
    max_extra_tokens=st.sampled_from([None, None, 0, 3, 12]),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), configs, st.sampled_from([0.0, 0.7]), st.integers(1, 40))
def test_invariants(salt, config, temperature, room):
    """It would not end, lie about `resolved`, overrun its room, or show a tag."""
    result, one = run(hashed(salt), config, room, temperature, seed=salt % 97)
    assert one.rejections <= config.max_attempts and len(result.ids) <= room
    assert not any(tag in result.text for tag in ("<SPAN>", "</CN>", "</UN>"))
    if result.resolved:
        assert all(p.p_un <= config.threshold for p in result.phrases)
        assert UN not in result.ids
    assert result.resolved is not None
    assert UN not in result.ids  # a `</UN>` never stays
    opened = False
    for token in result.ids:  # tags are well-formed
        assert not (token == SPAN and opened) and not (token == CN and not opened)
        opened = token == SPAN or (opened and token != CN)
    assert not opened
    assert result.usage.kept == len(result.ids) and result.usage.discarded >= 0
    assert len(result.trace) == one.rejections
    assert one.budget.discarded == sum(entry.tokens for entry in result.trace)
    if config.max_extra_tokens is not None:  # one segment may begin within the budget and end outside it
        assert one.budget.discarded <= max(config.max_extra_tokens - 1 + room, 0)
        if config.max_extra_tokens == 0:
            assert one.budget.discarded == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), configs, st.sampled_from([0.0, 0.7]))
def test_floor_is_never_undercut(salt, config, temperature):
    """What a stream has shown would be taken back."""
    floors = []

    class Watched(ResamplePolicy):
        def next(self, segment):
            answer = self.answer
            head = answer.ids[: answer.committed_length]
            action = super().next(segment)
            assert answer.ids[: len(head)] == head
            floors.append(answer.committed_length)
            return action

    factory = partial(Watched, sentence_rewind_points=config.policy != "paper")
    run(hashed(salt), config, 40, temperature, factory=factory)
    assert floors == sorted(floors)


def well_formed(salt):
    """As `hashed`, with tags where they belong, many short phrases, and no `</UN>`."""
    random = hashed(salt).logits

    def logits(prefix):
        row = random(prefix)
        inside = [i for i in prefix if i in (SPAN, CN)][-1:] == [SPAN]
        row[[SPAN, EOS] if inside else [CN]] = -50.0
        row[UN] = -50.0
        row[CN if inside else SPAN] += 3.0
        row[EOS] -= 3.0
        return row

    return mock.MockModel(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_threshold_one_is_plain_decoding(temperature):
    """Checking that never objects would still change what the model says."""
    phrases = whole = 0
    for salt in range(60):
        plain, _ = run(well_formed(salt), ResamplingConfig(threshold=1.0), 40, temperature, checking=False)
        checked, _ = run(well_formed(salt), ResamplingConfig(threshold=1.0), 40, temperature)
        closed = plain.ids.count(CN) == plain.ids.count(SPAN)
        if closed:
            assert checked.ids == plain.ids
        else:  # the length limit fell inside the last phrase, which is cut off
            assert checked.ids and checked.ids == plain.ids[: len(checked.ids)]
        assert checked.ids.count(CN) == plain.ids.count(CN) and checked.trace == ()
        phrases, whole = phrases + checked.ids.count(CN), whole + closed
    assert phrases > 100 and whole > 20  # the case would prove nothing


def test_threshold_one_keeps_the_sampled_distribution():
    """Checking that never objects would bend the probabilities of a sampled answer."""
    from scipy.stats import chisquare

    weights = [0.4, 0.3, 0.2, 0.1]

    def logits(prefix):
        row = [-math.inf] * mock.SIZE
        step = len(prefix) - 1
        if step == 0:
            row[SPAN] = 0.0
        elif step == 1:
            for token, weight in zip((A, B, C, D), weights, strict=True):
                row[token] = math.log(weight)
        else:
            row[CN if step == 2 else EOS] = 0.0
        return row

    model, counts = mock.MockModel(logits), dict.fromkeys((A, B, C, D), 0)
    for seed in range(1500):
        result, _ = run(model, ResamplingConfig(threshold=1.0), 8, temperature=1.0, seed=seed)
        counts[result.ids[1]] += 1
    assert chisquare(list(counts.values()), [1500 * w for w in weights]).pvalue > 1e-4
