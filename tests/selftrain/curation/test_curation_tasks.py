"""Each curation task against a teacher on 127.0.0.1: what it asks, what it keeps, what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverse.data.drafts.draft_record import GoldAnswer
from reverse.selftrain.curation.tasks.answer_task import AnswerTask
from reverse.selftrain.curation.tasks.correction_task import CorrectionTask
from reverse.selftrain.curation.tasks.rationale_task import RationaleTask, find_steps
from reverse.selftrain.curation.tasks.reflection_task import ReflectionTask
from tests.selftrain.curation.curating import curate, make_record, number_of

STAGED = "<SUMMARY>s</SUMMARY> <CAPTION>c</CAPTION> <REASONING>r</REASONING> <CONCLUSION>{}</CONCLUSION>"


def test_answers_get_the_verdict_of_grading(chat_server, tmp_path):
    """A wrong answer would be trained on as a right one, or an unreadable one count as either."""

    def respond(handler, body):
        number = number_of(body)
        said = {0: "0", 1: "7", 2: "I cannot tell."}[number]
        handler.give(f"<think>hm</think><answer>{said}</answer>")

    manifest, made, failures = curate(
        AnswerTask(), map(make_record, range(3)), chat_server(respond), tmp_path, temperature=0.2
    )
    drafts = [record.drafts[0] for record in made]
    assert [draft.verdict for draft in drafts] == ["right", "wrong", "unknown"] and not failures
    assert [draft.judged_by for draft in drafts] == ["grading", "grading", ""]
    assert drafts[0].answer == "0" and drafts[0].made_by == "m" and drafts[0].sampling.temperature == 0.2
    assert manifest["counts"]["answers.unknown"] == 1 and manifest["counts"]["tokens_in"] == 300


def test_samples_differ_by_their_seed(chat_server, tmp_path):
    """All samples of a question would be one, taken from the cache."""
    server = chat_server(lambda handler, body: handler.give(f"It is {body['seed']}."))
    _, (record,), _ = curate(
        AnswerTask(samples=3), [make_record(1)], server, tmp_path, temperature=0.9, seed=5
    )
    assert [draft.text for draft in record.drafts] == ["It is 5.", "It is 6.", "It is 7."]
    assert [draft.sampling.seed for draft in record.drafts] == [5, 6, 7]
    assert {draft.role for draft in record.drafts} == {"sample"}


def test_a_reflection_is_linked_with_the_answer_behind_it(chat_server, tmp_path):
    """The cold start would have no critique, or would train on the wrong answer as the last one."""
    server = chat_server(lambda handler, body: handler.give('```json\n{"reflection": "Count again."}\n```'))
    records = [make_record(3, answered=4), make_record(5, answered=5), make_record(6)]
    records.append(make_record(7, answered=7, gold=None))
    manifest, made, failures = curate(ReflectionTask(), records, server, tmp_path)
    assert [failure["reason"] for failure in failures] == ["no_answer", "no_gold"]
    first, critique, last = made[0].drafts
    assert (critique.text, critique.role, critique.parent) == ("Count again.", "reflection", 0)
    assert (last.text, last.parent, last.verdict) == ("<answer>3</answer>", 1, "right")
    assert made[0].links[0].kind == "reflect" and made[0].links[0].drafts == (0, 2)
    assert manifest["counts"]["reflections.wrong"] == manifest["counts"]["reflections.right"] == 1
    assert "gold" not in json.dumps(server.bodies) and len(server.bodies) == 2 and first.verdict == "wrong"


@pytest.mark.parametrize(
    "reply",
    [
        "I would count again.", '{"reflection": ""}', '{"reflection": 3}', "[]", "x" * 200_000,
        '{"reflection": "<answer>3</answer>"}', '{"reflection": "a", "answer": "3"}',
        '{"reflection": "a", "thinking": "b", "answer": "8"}', '{"reflection": "a"} {"reflection": "b"}',
    ],
)  # fmt: skip
def test_a_malformed_reflection_is_a_failure(chat_server, tmp_path, reply):
    """Text of any form, or a second thinking that ends wrongly, would be trained on."""
    server = chat_server(lambda handler, body: handler.give(reply))
    _, made, (failure,) = curate(
        ReflectionTask(second_thinking=True), [make_record(3, answered=4)], server, tmp_path
    )
    assert not made and failure["reason"] == "garbage" and failure["detail"]
    assert len(server.bodies) == 3 and len(failure["detail"]) < 300
    assert "is not 3" not in json.dumps(server.bodies[-1]["messages"][2:])  # the answer is not told


def test_a_second_thinking_is_verified(chat_server, tmp_path):
    """A teacher that is wrong at the second try would be believed, or asked no second time."""

    def respond(handler, body):
        answer = 8 if handler.number == 1 else 3
        handler.give(json.dumps({"reflection": "r", "thinking": "t", "answer": str(answer)}))

    server = chat_server(respond)
    manifest, (record,), _ = curate(
        ReflectionTask(second_thinking=True), [make_record(3, answered=4)], server, tmp_path
    )
    assert record.drafts[2].text == "<think>t</think>\n<answer>3</answer>"
    assert record.drafts[2].judged_by == "grading" and manifest["counts"]["replies"] == 2
    assert "final answer is wrong" in server.bodies[1]["messages"][-1]["content"]


def test_corrections_are_kept_only_if_they_are_right(chat_server, tmp_path):
    """Published pairs are not verified: a teacher's slip would teach to break a right answer."""

    def respond(handler, body):
        number = number_of(body)
        handler.give(STAGED.format(99 if number == 2 else number))

    records = [make_record(1, answered=1), make_record(2, answered=2), make_record(3, answered=4)]
    server = chat_server(respond)
    manifest, made, failures = curate(CorrectionTask(), records, server, tmp_path)
    assert [record.id for record in made] == ["q1", "q3"] and failures[0]["id"] == "q2"
    assert all(record.drafts[1].verdict == "right" and record.drafts[1].parent == 0 for record in made)
    assert made[1].links[0].kind == "refine" and made[1].links[0].drafts == (0, 1)
    counts = manifest["counts"]
    assert counts["pairs.right_right"] == counts["pairs.wrong_right"] == 1
    assert len({str(body["messages"][0]) for body in server.bodies}) == 1  # nobody says which are right


def test_only_wrong_answers_can_be_corrected(chat_server, tmp_path):
    """Wrong to right alone could not be made, which published pairs lack."""
    server = chat_server(lambda handler, body: handler.give(f"So.\nAnswer: {number_of(body)}"))
    records = [make_record(1, answered=1), make_record(3, answered=4)]
    _, made, failures = curate(CorrectionTask(schema=None, first="wrong"), records, server, tmp_path)
    assert [record.id for record in made] == ["q3"] and not failures and len(server.bodies) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Answer: 3", STAGED.format(""), STAGED.format(3) + " And more.", STAGED.format(3) * 2,
        STAGED.format(3).replace("CAPTION", "SUMMARY"), STAGED.format("</CN>"),
    ],
)  # fmt: skip
def test_a_correction_without_its_stages_is_a_failure(chat_server, tmp_path, text):
    """The four stages would be trained without one of them, or with words behind them."""
    server = chat_server(lambda handler, body: handler.give(text))
    _, made, (failure,) = curate(CorrectionTask(), [make_record(3, answered=4)], server, tmp_path)
    assert not made and failure["reason"] == "garbage"


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("tsst", "Let us look.\nStep 1: I see two dogs.\nStep 2: One more comes.\nFinal Answer: 3"),
        ("r3v", "1. I see two dogs.\n2. One more comes.\nand sits\nAnswer: 3\n"),
    ],
)
def test_rationales_have_steps_with_values(chat_server, tmp_path, style, text):
    """The warm-up of the value model would have no values, or segments beside the steps."""
    server = chat_server(lambda handler, body: handler.give(text))
    _, (record,), _ = curate(RationaleTask(style), [make_record(3)], server, tmp_path)
    draft = record.drafts[0]
    steps = [draft.text[segment.start : segment.end] for segment in draft.segments]
    assert len(steps) == 3 and steps[0].endswith("two dogs.") and steps[2].endswith("Answer: 3")
    assert [round(segment.value, 3) for segment in draft.segments] == [0.333, 0.667, 1.0]
    assert draft.verdict == "right" and draft.role == "rationale"


@pytest.mark.parametrize("shows", [True, False])
def test_the_teacher_is_told_the_answer_only_if_wanted(chat_server, tmp_path, shows):
    """A teacher that must find the answer would read it in the question."""
    server = chat_server(lambda handler, body: handler.give("1. So.\nAnswer: 12345"))
    record = make_record(3, gold=GoldAnswer(kind="number", answers=("12345",)))
    curate(RationaleTask("r3v", shows), [record], server, tmp_path)
    assert ("12345" in json.dumps(server.bodies)) == shows


def test_a_wrong_rationale_is_asked_for_again_without_the_answer(chat_server, tmp_path):
    """A rationale that ends wrongly would be kept, or the retry would give the answer away."""
    server = chat_server(lambda handler, body: handler.give("1. So.\nAnswer: 4"))
    record = make_record(3, gold=GoldAnswer(kind="number", answers=("12345",)))
    _, made, (failure,) = curate(RationaleTask("r3v", False), [record], server, tmp_path)
    assert not made and failure["detail"] == "its final answer is wrong" and len(server.bodies) == 3
    assert "12345" not in json.dumps(server.bodies)


LINES = st.sampled_from(
    ["1. a", "2. b", "3. c", "", "more", "Answer: 3", "Answer:", "10. x", " 1) z", "1.no"]
)


@given(st.lists(LINES, max_size=8))
def test_steps_are_found_or_refused(lines):
    """A text without the form would raise anything, or give segments that overlap or leave the text."""
    text = "\n".join(lines)
    try:
        found = find_steps(text, "r3v")
    except ValueError:
        return
    at = 0
    for segment in found:
        assert at <= segment.start < segment.end <= len(text)
        at = segment.end
    assert found[-1].value == 1.0 and text[found[-1].start : found[-1].end].strip().startswith("Answer: 3")
