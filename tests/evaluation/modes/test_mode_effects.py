"""Transitions, costs, kinds of errors and detection, against counts by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.data.drafts.draft_record import DraftSegment
from reverse.errors import DataError
from reverse.evaluation.modes.mode_effects import (
    answer_auroc,
    corrections_by_error,
    cost,
    first_answers,
    step_auroc,
    transitions,
)
from reverse.evaluation.modes.question_means import final_draft, is_right, pair_records
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from tests.evaluation.modes.recorded import answered, record, sample

FEW = BootstrapSettings(rounds=50)
VERDICTS = st.sampled_from([True, False, None])


@given(st.lists(st.tuples(VERDICTS, VERDICTS), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_transitions_add_up(pairs):
    """Net gain would differ from what was repaired minus what was broken."""
    before = [answered(str(i), was) for i, (was, _) in enumerate(pairs)]
    after = [answered(str(i), now) for i, (_, now) in enumerate(pairs)]
    found = transitions(before, after[::-1], FEW)  # in another order
    assert found.questions == len(pairs)
    assert found.before.point == pytest.approx(np.mean([was is True for was, _ in pairs]))
    assert found.after.point == pytest.approx(np.mean([now is True for _, now in pairs]))
    assert found.wrong_to_right.point == pytest.approx(
        np.mean([was is not True and now is True for was, now in pairs])
    )
    assert found.right_to_wrong.point == pytest.approx(
        np.mean([was is True and now is not True for was, now in pairs])
    )
    assert found.net.point == pytest.approx(found.wrong_to_right.point - found.right_to_wrong.point)
    assert found.net.point == pytest.approx(found.after.point - found.before.point, abs=1e-12)


def test_the_interval_of_net_gain_is_paired():
    """Two intervals computed apart would hide a small gain on the same questions."""
    before = [answered(str(i), i % 2 == 0) for i in range(400)]
    after = [answered(str(i), i % 2 == 0 or i % 40 == 1) for i in range(400)]
    found = transitions(before, after)
    assert found.net.low > 0 and found.net.high - found.net.low < 0.05
    assert found.before.high > found.after.low  # apart they overlap


def test_runs_over_other_questions_are_refused():
    """Answers to different questions would be compared."""
    told = r"2 questions are answered in only one of the runs, missing are 'a' \(second run\)"
    one, two = [answered("a", True), answered("b", True)], [answered("b", True), answered("c", True)]
    with pytest.raises(DataError, match=told):
        transitions(one, two)
    with pytest.raises(DataError, match="an id stands in several records"):
        pair_records(one + one, two)


def test_the_answer_is_the_accepted_draft():
    """The judge's reply or the last sample would be taken for the answer."""
    drafts = [sample("1", False), sample("2", True, accepted=True), sample("3", False, role="judge")]
    assert final_draft(record("a", *drafts)).answer == "2" and is_right(record("a", *drafts))
    assert final_draft(record("a", drafts[0], drafts[2])).answer == "3"
    assert [is_right(each) for each in first_answers([record("a", *drafts)])] == [False]
    with pytest.raises(DataError, match="record 'a' has no drafts"):
        is_right(record("a"))


def test_costs_are_per_question_and_per_right_answer():
    """A mode that spends ten times as much would look equal."""
    records = [answered("a", True, tokens=10, seconds=2.0), answered("b", False, tokens=30, seconds=1.0),
               answered("c", True, tokens=20, seconds=0.0)]  # fmt: skip
    found = cost(records, FEW)
    assert (found.tokens.point, found.seconds.point) == (20, 1)
    assert (found.tokens_per_right.point, found.seconds_per_right.point) == (30, 1.5)
    nothing = cost([answered("a", False)], FEW)
    assert nothing.tokens_per_right.point == np.inf and nothing.tokens_per_right.note
    with pytest.raises(DataError, match="record 'a' does not say what its answer cost"):
        cost([record("a", sample("1", True))])


def test_kinds_of_errors_that_are_corrected():
    """Which errors a mode cannot see would stay unknown."""
    kinds = ["count", "count", "count", "reading", "", None]
    before = [answered(str(i), kind is None, error=kind or "") for i, kind in enumerate(kinds)]
    after = [answered(str(i), right) for i, right in enumerate([True, False, True, False, True, False])]
    found = corrections_by_error(before, after, FEW)
    assert list(found) == ["count", "other", "reading"]
    assert {kind: (each.questions, each.corrected.point) for kind, each in found.items()} == {
        "count": (3, pytest.approx(2 / 3)), "other": (1, 1.0), "reading": (1, 0.0)
    }  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_pairs_in_order(rows):
    """p(</UN>) would look like a better detector than it is."""
    records = [answered(str(i), right, p_un=p / 8) for i, (right, p) in enumerate(rows)]
    pairs = [(p > q) + (p == q) / 2 for wrong, p in rows if not wrong for right, q in rows if right]
    for figure in (step_auroc, answer_auroc):
        found = figure(records, BootstrapSettings(method="percentile", rounds=20))
        assert (found is None) if not pairs else found.point == pytest.approx(np.mean(pairs))


def test_answers_are_detected_by_their_worst_step():
    """The mean of many sure steps would hide the doubtful one."""

    def segments(*ps):
        return tuple(DraftSegment(start=i, end=i + 1, p_un=p) for i, p in enumerate(ps))

    records = [record("a", sample("1", True, segments=segments(0.2, 0.3))),
               record("b", sample("1", False, segments=segments(0.0, 0.9, 0.0))),
               record("c", sample("1", None, segments=segments(0.95))),
               record("d", sample("1", False))]  # fmt: skip
    assert answer_auroc(records).point == 1.0
    assert step_auroc(records) is None  # no step has a verdict
