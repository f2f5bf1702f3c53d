"""The policy that does what the published code does: its nine differences, and outcomes recorded from it."""

import json
from pathlib import Path

import pytest

from benchmarks.fidelity import load_published
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.policy import Continue, Finish, Rewind, Segment
from reverse.decoding.policies.released_policy import ReleasedPolicy
from tests.decoding import scripts
from tests.decoding.scripts import CN, DOT, EOS, FORMAT_ERROR_ID, SPACE_DOT, SPAN, TAGS, UN, Outcome, Script

A, UPPER_A, B, C, D = (scripts.TEXTS.index(text) for text in (" a", " A", " b", " c", " d"))
THREE, FIVE = scripts.TEXTS.index("3"), scripts.TEXTS.index("5")
GOLDEN = json.loads((Path(__file__).parent / "released_golden.json").read_text())


def make(max_new_tokens=50, temperature=0.0, options=(), **settings):
    config = ResamplingConfig(**{"threshold": 0.5, "temperature_step": 0.05} | settings)
    given = {"full_stop": DOT, "decode": scripts.decode} | dict(options)
    return ReleasedPolicy(config, TAGS, max_new_tokens, temperature, **given)


def phrase(*words, p=0.0, close=CN, before=()):
    return Segment((*before, SPAN, *words, close), "phrase", p)


def text(*ids, end="eos"):
    return Segment((*ids, EOS) if end == "eos" else ids, end)


def play(policy, *segments):
    """The action after the last of several segments."""
    for segment in segments:
        action = policy.next(segment)
    return action


def accept(policy, *ids):
    """Make a policy accept `ids` as a corrected phrase: a call is rejected, its retry passes."""
    play(policy, phrase(D, p=0.9), text())
    assert isinstance(policy.next(Segment((*ids[:-1], SPAN, ids[-1], CN), "phrase", 0.0)), Continue)


def fail_retries(policy, count, word=B):
    for _ in range(count):
        action = policy.next(phrase(word, p=0.9))
    return action


# ---------------------------------------------------------------------- a call and its retries
def test_a_call_is_judged_when_it_ends():
    """A format error after a suspect phrase would be missed, and another text kept than the published one."""
    policy = make()
    assert policy.begin() == Continue(0.0, 0, 0.0, 50)
    assert policy.next(phrase(A)) == Continue(0.0, 0, 0.0, 47)
    assert policy.next(phrase(B, p=0.9)) == Continue(0.0, 0, 0.0, 44)
    assert policy.answer.ids == [SPAN, A, CN, SPAN, B, CN]
    assert policy.next(text(C)) == Rewind(3, (0.05,), 1, ((B,),), 0.0, 50)
    assert policy.answer.ids == [SPAN, A, CN]
    (attempt,) = policy.answer.attempts
    assert (attempt.kind, attempt.phrase, attempt.p, attempt.at, attempt.to) == ("rejected", (B,), 0.9, 0, 3)
    assert attempt.discarded == 5


def test_a_retry_is_judged_at_its_first_closing_tag():
    """The rest of a retry would be decoded in vain: the published code throws it away."""
    policy = make()
    play(policy, phrase(B, p=0.9), text())
    assert policy.next(phrase(C, p=0.5)) == Continue(0.0, 2, 0.0, 50)
    assert policy.answer.ids == [SPAN, C, CN]


def test_temperature_rises_to_its_cap():
    """Retries would repeat the same greedy phrase, or be hotter than the published ones."""
    policy = make(temperature=0.2, local_attempts=20)
    play(policy, phrase(B, p=0.9), text())
    seen = [0.25, *(fail_retries(policy, 1).temperatures[0] for _ in range(11))]
    assert seen == pytest.approx([0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.7, 0.7])


def test_clean_text_is_resolved():
    """A text without a doubtful phrase would be asked for again."""
    policy = make()
    assert play(policy, phrase(A), text(B)) == Finish("eos")
    assert (policy.answer.resolved, policy.calls, policy.answer.committed_length) == (True, 1, 5)
    assert [(span.start, span.end, span.accepted) for span in policy.answer.spans] == [(0, 3, True)]


# ---------------------------------------------------------------------- R1 to R9
def test_r1_it_goes_back_to_the_same_full_stop_again():
    """Escalation would stop at a place that the published code returns to until N is used up."""
    policy = make(local_attempts=2)
    accept(policy, A, DOT, C)
    policy.next(text(D, SPAN, B))  # unclosed: the first of two failures after the acceptance
    first = fail_retries(policy, 1)
    assert (first.to, first.temperatures) == (2, (0.1,))
    again = fail_retries(policy, 2)  # nothing was accepted here: T stays raised
    assert (again.to, again.temperatures) == (2, (0.2,))
    policy.next(phrase(C))
    play(policy, phrase(B, p=0.9), text())
    after = fail_retries(policy, 1)  # something was: T has restarted at T0
    assert (after.to, after.temperatures) == (2, (0.1,))


def test_r2_calls_are_counted_and_not_rejections():
    """Corrections that succeed would be free, and more of them be made than the published code makes."""
    policy = make(max_attempts=3)
    accept(policy, A)  # a rejected call, a retry that passes
    assert play(policy, phrase(B, p=0.9), text()) == Finish("exhausted")
    assert (policy.calls, policy.answer.ids, policy.answer.resolved) == (3, [SPAN, A, CN], False)


def test_r2_the_last_call_may_be_an_acceptance():
    """A phrase that the last retry mended would be lost."""
    policy = make(max_attempts=2)
    play(policy, phrase(B, p=0.9), text())
    assert policy.next(phrase(A)) == Finish("exhausted")
    assert policy.answer.ids == [SPAN, A, CN]


def test_r2_the_last_call_goes_back_a_sentence_if_it_is_the_kth_failure():
    """An answer would end in the sentence that the published code cuts off with its last call."""
    policy = make(max_attempts=4, local_attempts=2)
    accept(policy, A, DOT, C)
    play(policy, phrase(B, p=0.9), text())
    assert fail_retries(policy, 1) == Finish("exhausted")
    assert policy.answer.ids == [A, DOT]


def test_r3_an_unclosed_tag_takes_the_whole_call_back():
    """Good phrases of that call would be kept, which the published code draws anew."""
    policy = make(options={"format_error": (FORMAT_ERROR_ID,)})
    assert play(policy, phrase(A), text(SPAN, B)) == Rewind(0, (0.05,), 1, ((FORMAT_ERROR_ID,),), 0.0, 50)
    assert (policy.answer.ids, policy.answer.attempts[0].kind) == ([], "unclosed")


def test_r4_a_sampled_un_is_accepted_if_p_allows_it():
    """A phrase that the published code keeps would be decoded again."""
    policy = make()
    assert play(policy, phrase(A, p=0.5, close=UN), text(B)) == Finish("eos")
    assert policy.answer.resolved is True


@pytest.mark.parametrize(("open_ended", "kept"), [(True, [A, DOT]), (False, [A, DOT, SPAN, C, CN])])
def test_r5_the_unfinished_sentence_is_cut_off_when_n_is_used_up(open_ended, kept):
    """An open-ended answer would end in half a sentence, or a caption lose one."""
    policy = make(max_attempts=3, open_ended=open_ended)
    accept(policy, A, DOT, C)
    assert play(policy, phrase(B, p=0.9), text()) == Finish("exhausted")
    assert policy.answer.ids == kept


def test_r5_any_token_with_a_full_stop_ends_the_last_sentence():
    """The last cut looks at the text: a sentence would be lost with a tokenizer that writes " ."."""
    policy = make(max_attempts=3, open_ended=True)
    accept(policy, A, SPACE_DOT, C)
    play(policy, phrase(B, p=0.9), text())
    assert policy.answer.ids == [A, SPACE_DOT]


@pytest.mark.parametrize("said", [(), (UN, A), (CN,), (scripts.BLANK,)])
def test_r5_a_blank_answer_becomes_the_fixed_one(said):
    """The second question would be answered with nothing, where the published code has a sentence."""
    policy = make(options={"blank_answer": (C, D)})
    assert policy.next(text(*said)) == Finish("eos")
    assert policy.answer.ids == [C, D]


def test_r6_the_length_limit_inside_a_phrase_is_tried_again():
    """An answer would end in the middle of a phrase that the published code asks for again."""
    policy = make(max_new_tokens=3)
    assert policy.next(text(A, SPAN, B, end="length")) == Rewind(0, (0.05,), 1, (), 0.0, 3)


def test_r6_max_new_tokens_is_of_one_call():
    """Answers would be shorter than the published ones, which may hold N times as many."""
    policy = make(max_new_tokens=4)
    policy.next(text(SPAN, A, B, C, end="length"))
    assert policy.next(phrase(A)) == Continue(0.0, 2, 0.0, 4)
    assert policy.next(text(A, B, C, D, end="length")) == Finish("length")
    assert policy.answer.ids == [SPAN, A, CN, A, B, C, D]


def test_r6_a_call_ends_at_the_limit_even_behind_a_closing_tag():
    """Decoding would go on with no token left."""
    policy = make(max_new_tokens=3)
    assert policy.next(phrase(A)) == Finish("length")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ([Segment((A, CN), "phrase", 0.0), phrase(B)], "malformed"),  # closed before it was opened
        ([phrase(A), Segment((UN,), "phrase", 0.0)], "malformed"),
        ([phrase(SPAN, A)], "unclosed"),
    ],
)
def test_r7_malformed_tags_are_a_format_error(said, kind):
    """Tags that a mask would have prevented are neither accepted nor hinted as a phrase."""
    policy = make()
    assert policy.masks_tags is False
    assert play(policy, *said, text(C)) == Rewind(0, (0.05,), 1, (), 0.0, 50)
    assert policy.answer.attempts[0].kind == kind


def test_r7_only_the_number_and_order_of_tags_count():
    """Nested phrases pass in the published code."""
    policy = make()
    said = [phrase(SPAN, A), Segment((B, CN), "phrase", 0.0)]
    assert play(policy, *said, text(C)) == Finish("eos")


def test_r7_an_answer_without_phrases_ends_before_un():
    """Text behind a `</UN>` that nothing opened would be shown, which the published code cuts off."""
    policy = make()
    assert play(policy, Segment((A, UN), "phrase", 1.0), text(B)) == Finish("eos")
    assert policy.answer.ids == [A]


def test_r8_a_retry_without_a_phrase_is_asked_once_more():
    """The text would end where the published code asks for more at T0."""
    policy = make(temperature=0.3)
    play(policy, phrase(A, p=0.9), text())
    assert policy.next(text(B)) == Rewind(1, (0.3,), 2, ((A,),), 0.3, 50)
    assert policy.next(text(C)) == Finish("eos")
    assert policy.answer.ids == [B, C, EOS]


def test_r8_the_last_token_of_such_a_retry_is_lost():
    """At the length limit the published code takes a word for the end of the text."""
    policy = make(max_new_tokens=3)
    policy.next(text(SPAN, A, B, end="length"))
    policy.next(text(B, C, D, end="length"))
    assert policy.answer.ids == [B, C]


@pytest.mark.parametrize(
    ("accepted", "to"),
    [
        ((A, SPACE_DOT, C), 0),  # a full stop of another id
        ((THREE, DOT, FIVE, C), 2),  # inside a number
        ((A, DOT, B, scripts.MARK, C), 2),
    ],
)
def test_r9_only_the_token_of_a_full_stop_ends_a_sentence(accepted, to):
    """Going back would stop elsewhere than the published code does."""
    policy = make(local_attempts=2)
    accept(policy, *accepted)
    play(policy, phrase(B, p=0.9), text())
    assert fail_retries(policy, 1).to == to


def test_r9_a_full_stop_inside_a_phrase_ends_a_sentence():
    """The accepted text then opens a phrase that a later call closes, and pairs of tags are shifted."""
    policy = make(local_attempts=2)
    play(policy, phrase(D, p=0.9), text())
    policy.next(phrase(A, DOT, B))
    play(policy, phrase(B, p=0.9), text())
    assert fail_retries(policy, 1).to == 3
    assert policy.answer.ids == [SPAN, A, DOT]
    assert policy.next(Segment((C, CN), "phrase", 0.9)) == Continue(0.0, 5, 0.0, 50)  # no <SPAN>: unchecked
    assert policy.next(text(A)) == Finish("eos")
    assert policy.answer.resolved is False  # the phrase is not confident, whatever the pairs say


# ---------------------------------------------------------------------- hints
def test_hints_name_cut_text_too_and_no_phrase_twice():
    """The model would be shown another prompt than the published one."""
    policy = make(local_attempts=2)
    play(policy, phrase(A, p=0.9, before=(B, B)), text())
    assert fail_retries(policy, 1, UPPER_A).hints == ((A,),)  # compared in lower case; no text before it
    policy = make(local_attempts=2)
    accept(policy, A, DOT, B, C)
    play(policy, phrase(B, p=0.9), text())
    assert fail_retries(policy, 1).hints == ((D,), (B,), (B, C))


def test_hints_are_the_last_ones():
    """The prompt would grow with every rejection."""
    policy = make(local_attempts=20, hints=2)
    play(policy, phrase(A, p=0.9), text())
    fail_retries(policy, 1, B)
    assert fail_retries(policy, 1, C).hints == ((B,), (C,))
    policy = make(hints=0)
    assert play(policy, phrase(A, p=0.9), text()).hints == ()


# ---------------------------------------------------------------------- what the published code does not have
@pytest.mark.parametrize("p", [None, float("nan"), 1.5])
def test_a_closing_tag_needs_a_probability(p):
    """A backend that reports none would have every phrase accepted."""
    with pytest.raises(ValueError, match="must be a probability at every closing tag"):
        make().next(Segment((A, CN), "phrase", p))


def test_a_segment_fits_the_call():
    """A backend that overruns the limit would shift all positions after it."""
    with pytest.raises(ValueError, match="1 to 2 ids"):
        make(max_new_tokens=2).next(text(A, B))
    with pytest.raises(ValueError, match="1 to 50 ids"):
        make().next(Segment((), "stop"))
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        make(max_new_tokens=0)
    with pytest.raises(ValueError, match="threshold"):
        make(threshold=None)


def test_a_stop_ends_the_call_and_the_answer():
    """Text would go on behind a stop string, or a retry lose the string's last token."""
    policy = make()
    assert policy.next(Segment((SPAN, A, CN), "phrase", 0.1, stop=True)) == Finish("stop")
    policy = make()
    play(policy, phrase(A, p=0.9), text())
    assert policy.next(text(B, C, end="stop")) == Finish("stop")
    assert policy.answer.ids == [B, C]
    policy = make()
    assert isinstance(policy.next(Segment((SPAN, A, CN), "phrase", 0.9, stop=True)), Rewind)


@pytest.mark.parametrize("settings", [{"max_seconds": 5.0}, {"max_extra_tokens": 4}, {"max_attempts": 0}])
def test_a_used_up_budget_ends_the_answer(settings):
    """A caller's limits would be ignored."""
    policy = make(**settings)
    policy.next(phrase(A))
    policy.next(phrase(B, p=0.9))
    action = policy.next(Segment((EOS,), "eos", seconds=6.0))
    assert (action, policy.answer.ids) == (Finish("exhausted"), [SPAN, A, CN])


def test_the_context_bounds_an_answer_of_many_calls():
    """N calls of `max_new_tokens` ids would run beyond the context of the model."""
    policy = make(options={"max_answer_tokens": 7})
    policy.next(phrase(A))
    assert play(policy, phrase(B, p=0.9), text()).max_tokens == 4
    assert policy.next(phrase(B, before=(A,))) == Finish("length")
    assert (policy.answer.ids, policy.answer.resolved) == ([SPAN, A, CN, A, SPAN, B, CN], True)


def test_without_a_decoder_ids_are_compared():
    """A caller without text could not use the policy."""
    policy = make(max_attempts=3, open_ended=True, options={"decode": None, "blank_answer": (D,)})
    accept(policy, A, DOT, C)
    play(policy, phrase(B, p=0.9), text())
    assert policy.answer.ids == [A, DOT]
    policy = make(options={"decode": None, "blank_answer": (D,)})
    policy.next(text())
    assert policy.answer.ids == [D]


@pytest.mark.parametrize("seed", range(150))
def test_committed_text_is_never_taken_back(seed):
    """A stream would have shown text that the result does not hold; decoding would not end."""

    class Watched(ReleasedPolicy):
        committed: tuple[int, ...] = ()

        def next(self, segment):
            action = super().next(segment)
            answer = self.answer
            head = tuple(answer.ids[: answer.committed_length])
            assert head[: len(self.committed)] == self.committed
            self.committed = head
            assert all(answer.ids[s.start] == SPAN and s.end <= len(answer.ids) for s in answer.spans)
            return action

    script = Script.make(seed)
    policy = scripts.make_policy(script, seed % 2 == 1, Watched)
    finish = scripts.run_policy(script, policy)
    assert policy.calls <= script.max_attempts
    assert policy.answer.resolved == (
        finish.reason != "exhausted" and all(s.accepted for s in policy.answer.spans)
    )


# ---------------------------------------------------------------------- recorded from the published code
@pytest.mark.parametrize("row", GOLDEN["scripts"], ids=lambda row: str(row["seed"]))
def test_scripts_end_as_in_the_published_code(row):
    """The policy would drift away from the code that it stands for (recorded by `benchmarks/fidelity.py`)."""
    outcome = scripts.run_released(Script.make(row["seed"]))
    assert outcome == Outcome(tuple(row["ids"]), row["calls"])


@pytest.mark.parametrize("content", [None, "print('executed')"])
def test_other_code_is_not_compared_with(tmp_path, content, capsys):
    """A wrong folder would be run, and its outcomes be taken for the published ones."""
    if content is not None:
        (tmp_path / "llava").mkdir()
        (tmp_path / "llava" / "constants.py").write_text(content)
    with pytest.raises(ValueError, match=r"no file llava.constants\.py|is not that of the published code"):
        load_published(tmp_path)
    assert capsys.readouterr().out == ""
