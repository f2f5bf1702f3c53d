"""Views: rows say what the drafts say, targets are verified, and prompts are those that the modes write."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.drafts.draft_files import write_drafts
from reverse.data.drafts.draft_record import DraftLink, DraftRecord, DraftSegment, GoldAnswer, RecordedDraft
from reverse.data.records.record_rules import check_shape, find_faults
from reverse.decoding.asks import Conversation, Node, Outcome
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.result import Result, Usage
from reverse.decoding.scheduling.tasks import ModeRequest
from reverse.decoding.text.codec import TextCodec
from reverse.errors import DataError, RequestError
from reverse.models import family_of, prepare_inputs
from reverse.modes import Refine, Reflect, Select, SelfCorrect
from reverse.tokens.spans import remove_tags
from reverse.training.data.encoding import Encoder
from reverse.training.data.labels import IGNORE
from reverse.training.data.picture_encoding import PictureEncoder
from reverse.training.data.record_turns import turns_of
from reverse.training.views.view_files import VIEWS, find_view, make_mode, write_view
from reverse.training.views.view_rows import ViewSettings, is_verified

QUESTION = "How many dogs and cups are there?"


def draft(dogs, cups, *, role="sample", verdicts=("right", "right"), verdict="right", answer=None):
    """A rationale of two steps, with a verdict on each."""
    text = f"Step 1: there are {dogs} dogs. Step 2: there are {cups} cups. Answer: {dogs + cups}"
    segments = []
    for words, said in zip((f" {dogs} dogs", f" {cups} cups"), verdicts, strict=True):
        at = text.index(words)
        segments.append(DraftSegment(start=at, end=at + len(words), verdict=said))
    answer = str(dogs + cups) if answer is None else answer
    return RecordedDraft(text=text, role=role, segments=tuple(segments), answer=answer, verdict=verdict)


WRONG = draft(3, 4, verdicts=("wrong", "right"), verdict="wrong")
LATE = draft(2, 7, verdicts=("right", "wrong"), verdict="wrong")
RIGHT = draft(2, 4)
LUCKY = draft(1, 5, verdicts=("wrong", "wrong"))  # right answer, wrong steps
TRUE = draft(2, 4, role="rationale")


def record(*drafts, links=(), name="q1", images=("a.png",)):
    gold = GoldAnswer(kind="number", answers=("6",))
    return DraftRecord(id=name, question=QUESTION, images=images, gold=gold, drafts=drafts, links=links)


def rows_of(view, *drafts, links=(), **options):
    return VIEWS[view](record(*drafts, links=links), ViewSettings(**options))


def said(row, turn=-1):
    return row["conversations"][turn]


def test_solve_rows_keep_the_prejudice_and_train_no_tag():
    """The policy would learn the truth, and nothing would be left to correct."""
    prejudiced = draft(3, 4, role="rationale", verdicts=("wrong", "right"), verdict="wrong")
    made = rows_of("cot", prejudiced, RIGHT)
    (row,) = made.rows
    assert said(row)["targets"] == "content" and "</UN>" not in said(row)["value"]
    assert said(row)["value"].count("</CN>") == 2 and remove_tags(said(row)["value"]) == prejudiced.text
    assert said(rows_of("cot", prejudiced, tagged=False).rows[0])["value"] == prejudiced.text
    assert rows_of("cot", prejudiced, verified=True).left_out == {"not verified": 1}
    assert len(rows_of("cot", RIGHT, LUCKY, roles=("sample",), verified=True, tagged=False).rows) == 1


def test_tagged_steps_end_at_the_first_wrong_phrase():
    """What follows a wrong step would be trained."""
    made = rows_of("tagged_steps", WRONG, LATE, RIGHT)
    assert [said(row)["value"].split("</UN>")[-1] for row in made.rows[:2]] == ["", ""]
    assert said(made.rows[0])["value"] == "Step 1: there are<SPAN> 3 dogs</UN>"
    assert said(made.rows[1])["value"].endswith("there are<SPAN> 7 cups</UN>")
    assert "</UN>" not in said(made.rows[2])["value"] and made.made["all right"] == 1


def test_judge_rows_keep_all_steps():
    """The judge would never see what comes behind a wrong step."""
    (row,) = rows_of("judge", LATE).rows
    assert remove_tags(said(row)["value"]) == LATE.text and said(row)["targets"] == "closing"
    assert said(row)["value"].index("</CN>") < said(row)["value"].index("</UN>")


def test_judge_rows_of_reflections_are_the_first_half_of_the_turn():
    """The gate of `reflect` would read a judgement that was never trained under its instruction."""
    mode = Reflect(instruction="Reflect.")
    (judged,) = rows_of("reflect_judge", LATE, mode=mode).rows
    (corrected,) = rows_of("reflect", LATE, TRUE, mode=mode).rows
    assert said(judged, 0)["value"] == said(corrected, 0)["value"] and "Reflect." in said(judged, 0)["value"]
    assert said(judged)["targets"] == "closing"
    head, answer = said(judged)["value"], f"<answer>{LATE.answer}</answer>"
    assert head.count("</UN>") == 1 and head.endswith(answer)
    assert said(corrected)["value"].startswith(head.replace("</UN>", "</CN>"))
    text = f"<think>{LATE.text}</think>\n<answer>9</answer>"
    moved = [each.model_copy(update={"start": each.start + 7, "end": each.end + 7}) for each in LATE.segments]
    thinking = LATE.model_copy(update={"text": text, "segments": tuple(moved)})
    assert said(rows_of("reflect_judge", thinking, mode=mode).rows[0])["value"] == head
    moved = [each.model_copy(update={"start": each.start + 8, "end": each.end + 8}) for each in LATE.segments]
    late = LATE.model_copy(update={"text": f"<answer>{LATE.text}</answer>", "segments": tuple(moved)})
    assert rows_of("reflect_judge", late).left_out == {"no phrase before the answer": 1}
    silent = LATE.model_copy(update={"answer": None})
    assert rows_of("reflect_judge", silent).left_out == {"no extracted answer": 1}
    with pytest.raises(RequestError, match="needs a mode of the kind Reflect"):
        rows_of("reflect_judge", LATE, mode=Refine())


def test_the_reason_names_the_roles_that_a_view_needs():
    """A user would not know which drafts are missing."""
    assert rows_of("judge", TRUE).left_out == {"no draft with a role of sample, first, chain": 1}
    assert rows_of("cot", RIGHT).left_out == {"no draft with a role of rationale": 1}


@pytest.mark.parametrize("view", ["tagged_steps", "judge", "reflect_judge"])
def test_what_cannot_be_judged_is_left_out(view):
    """Unknown phrases would be taught as right."""
    unknown = draft(5, 4, verdicts=("unknown", "right"), verdict="wrong")
    hidden = draft(2, 4, verdict="wrong", answer="7")
    bare = RecordedDraft(text="Answer: 6", verdict="right")
    made = rows_of(view, unknown, hidden, bare)
    assert not made.rows
    assert made.left_out == {
        "phrase without a verdict": 1, "wrong answer without a wrong phrase": 1, "no phrase": 1,
    }  # fmt: skip


PAIRED = ("refine", "self_correct", "reflect")


@pytest.mark.parametrize("view", PAIRED)
def test_targets_of_corrections_are_verified(view):
    """Right answers with wrong steps made the pilot's corrections break right answers."""
    made = rows_of(view, WRONG, LUCKY, right_share=1.0)
    assert not made.rows and made.left_out["no verified target"] == 2
    link = DraftLink(kind="refine" if view == "self_correct" else view, drafts=(0, 1))
    assert rows_of(view, WRONG, LUCKY, links=(link,)).left_out == {"target is not verified": 1}
    made = rows_of(view, WRONG, LUCKY, RIGHT, TRUE, right_share=1.0)
    assert made.made == {"wrong to right": 1, "right to right": 2}
    for row in made.rows:
        assert said(row)["value"].count("there are<SPAN> 2 dogs</CN>") >= 1
        assert "</UN>" not in said(row)["value"]


@pytest.mark.parametrize("view", PAIRED)
def test_first_answers_are_input_as_the_model_writes_them(tiny_any, view):
    """A wrong answer would be a target, or at test time stand there with tags that were never trained."""
    encoder = Encoder(tiny_any[1])
    (row,) = rows_of(view, WRONG, TRUE).rows
    encoded = encoder.row(turns_of(row), 4)
    trained = tiny_any[1].tokenizer.decode(encoded.labels[encoded.labels != IGNORE])
    shown = tiny_any[1].tokenizer.decode(encoded.ids)
    first = "there are 3 dogs" if view == "refine" else "there are<SPAN> 3 dogs</CN>"  # refine shows text
    assert first in shown and "3 dogs<" not in trained and "are 3 dogs" not in trained
    assert "Answer: 7" not in trained and "Answer: 6" in trained


def test_right_answers_are_kept_by_the_share():
    """All right answers would become pairs, or none."""
    records = [record(RIGHT, TRUE, name=f"q{i}") for i in range(400)]
    kept = sum(len(VIEWS["refine"](each, ViewSettings(seed=1, right_share=0.25)).rows) for each in records)
    assert 60 < kept < 140
    assert not any(VIEWS["refine"](each, ViewSettings(right_share=0.0)).rows for each in records)


def test_reflections_follow_the_grammar():
    """The mode would call its own training data malformed."""
    for schema in ("tarta", "taranswer"):
        mode = Reflect(schema=schema, instruction="Think, answer, reflect.")
        made = rows_of("reflect", WRONG, RIGHT, TRUE, right_share=1.0, mode=mode)
        for row in made.rows:
            text = remove_tags(said(row)["value"])
            assert mode.follows(text) and text.endswith("<answer>6</answer>")
            assert said(row, 0)["value"].endswith("Think, answer, reflect.")
        wrong, right = made.rows
        given = said(wrong)["given"]
        assert said(wrong)["value"][:given].endswith("<answer>7</answer>")
        assert '"3 dogs" is wrong.' in said(wrong)["value"] and "given" not in said(right)


def test_candidates_are_distinct_and_one_is_right():
    """Shown duplicates the model answers outside of the set."""
    again = draft(4, 3, verdicts=("wrong", "wrong"), verdict="wrong")  # 7 too
    seen = Counter()
    for seed in range(60):
        (row,) = rows_of("select", WRONG, again, LATE, RIGHT, draft(9, 9, verdict="wrong"), seed=seed).rows
        shown = said(row, 0)["value"]
        answers = [line.rsplit(" ", 1)[1] for line in shown.splitlines() if line.startswith("Answer ")]
        assert 2 <= len(answers) <= 4 and len(set(answers)) == len(answers) and answers.count("6") == 1
        assert remove_tags(said(row)["value"]) == RIGHT.text
        seen[len(answers), answers.index("6")] += 1
    assert {count for count, _ in seen} == {2, 3, 4} and {at for _, at in seen} == {0, 1, 2, 3}
    assert rows_of("select", WRONG, LUCKY).left_out == {"no verified answer among the samples": 1}
    assert rows_of("select", RIGHT).left_out == {"no wrong answer": 1}
    link = DraftLink(kind="select", drafts=(1, 0))
    (row,) = rows_of("select", RIGHT, WRONG, links=(link,)).rows
    assert said(row, 0)["value"].index(WRONG.text) < said(row, 0)["value"].index(RIGHT.text)
    both = DraftLink(kind="select", drafts=(0, 0))
    assert not rows_of("select", RIGHT, WRONG, links=(both,)).rows


VERDICTS = st.sampled_from(["right", "wrong", "unknown"])
DRAFTS = st.builds(
    draft,
    st.integers(0, 3),
    st.integers(0, 3),
    role=st.sampled_from(["sample", "first", "rationale", "chain"]),
    verdicts=st.tuples(VERDICTS, VERDICTS),
    verdict=VERDICTS,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(VIEWS)), st.lists(DRAFTS, max_size=6), st.integers(0, 3), st.booleans())
def test_every_row_is_a_good_record(view, drafts, seed, tagged):
    """A row would be refused hours later, or a wrong answer trained."""
    options = ViewSettings(seed=seed, tagged=tagged, right_share=1.0)
    one = record(*drafts)
    made = VIEWS[view](one, options)
    assert made.rows == VIEWS[view](one, options).rows  # pure
    assert len({row["id"] for row in made.rows}) == len(made.rows) == sum(made.made.values())
    verified = {each.text for each in drafts if is_verified(each)}
    for row in made.rows:
        check_shape(row)
        assert not list(find_faults(row))
        assert turns_of(row)
        if view in ("refine", "self_correct", "select"):
            assert remove_tags(said(row)["value"]) in verified


# ---------------------------------------------------------------------------------------------------- ids
def prompt_ids(model, processor, picture, source):
    """The ids that decoding prefills for a conversation."""
    if isinstance(source, Node):
        return list(source.ids)
    return prepare_inputs(processor, [picture], [source.prompt], family_of(model))["input_ids"][0].tolist()


def ask_twice(mode, first, model, processor, picture):
    """Ids of the first and of the second question of a mode whose first answer is `first`."""
    generator = mode.run(ModeRequest(Conversation(picture, QUESTION), ResamplingConfig(threshold=0.1)))
    (ask,) = next(generator)
    ids = prompt_ids(model, processor, picture, ask.source)
    encoder = Encoder(processor)
    answer = encoder._answers([first])[0][:-1].tolist()  # without its end of turn
    result = Result(first, first, (), True, "stop", (), Usage(len(answer), 0, 1, 0.0), tuple(answer))
    node = Node(tuple(ids), writer=TextCodec(processor)).add_answer(answer, result)
    asks = generator.send([Outcome(result, node)])
    while not hasattr(asks[0], "until"):  # a score
        asks = generator.send([-1.0] * len(asks))
    return ids, prompt_ids(model, processor, picture, asks[0].source)


@pytest.mark.parametrize("view", ["refine", "self_correct", "reflect"])
def test_rows_begin_with_the_ids_that_the_mode_asks_with(tiny_any, picture, view):
    """A model trained on another prompt than it is asked with loses what it learnt."""
    model, processor = tiny_any
    _, tokens = PictureEncoder(processor)(picture())
    mode = {
        "refine": Refine(confidence="min"),
        "self_correct": SelfCorrect(confidence="min"),
        "reflect": Reflect(gate=0.9, confidence="min", instruction="Think first."),
    }[view]
    (row,) = rows_of(view, WRONG, TRUE, mode=mode).rows
    encoded = Encoder(processor).row(turns_of(row), tokens)
    text = said(row)["value"]
    first = {"refine": WRONG.text, "self_correct": said(row, 1)["value"]}.get(view)
    first = text[: said(row)["given"]] if first is None else first
    asked, again = ask_twice(mode, first, model, processor, picture())
    assert encoded.ids[: len(again)].tolist() == again
    assert (encoded.labels[: len(again)] == IGNORE).all() or view == "reflect"
    if view != "refine":
        assert again[: len(asked)] == asked
    assert (encoded.labels[len(again) :] != IGNORE).all()


def test_select_rows_begin_with_the_ids_that_the_mode_asks_with(tiny_any, picture):
    """A model trained to select would be asked with another prompt than it learnt."""
    model, processor = tiny_any
    _, tokens = PictureEncoder(processor)(picture())
    drafts = [WRONG, LATE, RIGHT]
    (row,) = rows_of("select", *drafts, seed=5).rows
    encoded = Encoder(processor).row(turns_of(row), tokens)
    shown = said(row, 0)["value"]
    order = sorted((each for each in drafts if each.text in shown), key=lambda each: shown.index(each.text))
    for seed in range(50):  # until the mode shows the same order
        mode = Select(n=len(order), judge="self", confidence="min", seed=seed, group=4)
        generator = mode.run(ModeRequest(Conversation(picture(), QUESTION), ResamplingConfig(threshold=0.1)))
        next(generator)
        outcomes = []
        for each in order:
            result = Result(each.text, each.text, (), True, "eos", (), Usage(1, 0, 1, 0.0), (1,))
            outcomes.append(Outcome(result, Node((1,))))
        (ask,) = generator.send(outcomes)
        asked = prompt_ids(model, processor, picture(), ask.source)
        if encoded.ids[: len(asked)].tolist() == asked:
            break
    else:
        pytest.fail("no order of the mode gives the ids of the row")
    assert (encoded.labels[: len(asked)] == IGNORE).all()


# -------------------------------------------------------------------------------------------------- files
def test_the_command_writes_rows_and_counts(tmp_path):
    """What was left out would be lost without a word."""
    records = [record(WRONG, TRUE, name="a"), record(LUCKY, name="b"), record(name="c", images=())]
    write_drafts(tmp_path / "d.jsonl", records)
    drafts, out = str(tmp_path / "d.jsonl"), str(tmp_path / "r.jsonl")
    arguments = ["data", "view", drafts, "--as", "refine", "--out", out, "--seed", "0"]
    done = CliRunner().invoke(app, [*arguments, "--instruction", "{question} Was {answer} right?"])
    assert done.exit_code == 0, done.output
    assert "1 rows of 3 records (1 wrong to right)" in done.output
    assert "left out: 1, no verified target" in done.output and "no first answer" in done.output
    (row,) = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert row["image"] == "a.png" and "Was Step 1" in said(row, 0)["value"]
    manifest = json.loads((tmp_path / "r.jsonl.manifest.json").read_text())
    assert manifest["rows"] == 1 and manifest["settings"]["seed"] == 0
    for wrong, match in (
        (["--as", "poem", "--out", "x"], "must be one of cot"),
        (["--as", "refine"], "--as needs --out"),
        (["--out", "x"], "needs --as"),
        (["--as", "cot", "--out", "x", "--instruction", "a"], "has no instruction"),
        (["--as", "refine", "--out", str(tmp_path / "d.jsonl")], "is the draft file itself"),
        (["--as", "refine", "--out", "x", "--right-share", "2"], r"right_share must lie in"),
    ):
        refused = CliRunner().invoke(app, ["data", "view", str(tmp_path / "d.jsonl"), *wrong])
        assert refused.exit_code == 2 and match in " ".join(refused.output.split()), refused.output


def test_a_view_without_rows_leaves_no_file(tmp_path):
    """An empty set would be trained."""
    write_drafts(tmp_path / "d.jsonl", [record(WRONG)])
    with pytest.raises(DataError, match="no verified target"):
        write_view(tmp_path / "d.jsonl", tmp_path / "r.jsonl", "refine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl"]


def test_modes_of_another_kind_are_refused():
    """The instruction of another mode would be trained."""
    with pytest.raises(RequestError, match="of the kind Refine"):
        rows_of("refine", WRONG, TRUE, mode=SelfCorrect())
    assert make_mode("refine", None) is None and find_view("cot") is VIEWS["cot"]


def test_hostile_drafts_are_left_out():
    """A tag inside a draft would move the mask."""
    tagged = RecordedDraft(text="<SPAN>6", role="rationale", verdict="right")
    pictured = RecordedDraft(text="<image> 6", role="rationale", verdict="right")
    made = rows_of("cot", tagged, pictured, RecordedDraft(text=" ", role="rationale"))
    assert not made.rows and sum(made.left_out.values()) == 3


def test_a_teachers_reflection_is_what_reflect_says():
    """The reflections that a teacher was paid for would be replaced by a sentence of our own."""
    said = ("<think>I see 3.</think>\n<answer>3</answer>", "I took a cat for a dog.")
    drafts = [
        {"text": said[0], "answer": "3", "role": "first", "verdict": "wrong"},
        {"text": said[1], "role": "reflection", "parent": 0},
        {
            "text": "<think>So 2.</think>\n<answer>2</answer>",
            "answer": "2",
            "role": "correction",
            "parent": 1,
        },
    ]
    drafts[2]["verdict"] = "right"
    whole = {"id": "q", "question": "How many?", "drafts": drafts}
    record = DraftRecord.model_validate({**whole, "links": [{"kind": "reflect", "drafts": [0, 2]}]})
    (row,) = VIEWS["reflect"](record, ViewSettings()).rows
    assert row["conversations"][1]["value"] == (
        "<think>I see 3.</think>\n<answer>3</answer>\n<reflection>I took a cat for a dog.</reflection>\n"
        "<think>So 2.</think>\n<answer>2</answer>"
    )
