"""`reverse eval --mode A --mode B`: answers and drafts per mode, forms of answers, stopping, wrong calls."""

import json

import pytest
from typer.testing import CliRunner

import reverse.api
from reverse.cli import app
from reverse.data.drafts.draft_files import read_drafts
from reverse.data.drafts.draft_record import DraftSegment
from reverse.data.scenes.benchmark_files import write_benchmarks
from reverse.data.scenes.reasoning import write_reasoning
from reverse.decoding.result import Draft, Phrase, Result, Usage
from reverse.evaluation import benchmarks
from reverse.evaluation.modes.mode_effects import step_auroc
from reverse.evaluation.modes.question_means import final_draft
from reverse.evaluation.runs.benchmark_run import Decoding, EvalConfig, run
from reverse.evaluation.runs.mode_drafts import _merge_segments, set_answer_format
from reverse.grading import AnswerFormat
from reverse.modes import Reflect, Select, SelfCorrect
from tests.evaluation.graded.published import WRITERS
from tests.evaluation.mock_run import answered

NAMES = ("chartqa", "clevr-math", "tabmwp", "mathvision")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in NAMES:
        WRITERS[name](root)
    return root


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    """Two benchmarks in three modes, and what the command said."""
    out = tmp_path_factory.mktemp("out")
    result = call(
        "eval", "chartqa", "clevr-math", "--model", "tiny-llava", "--data", data, "--out", out,
        "--mode", "plain", "--mode", "select", "--mode", "self_correct", "--n", 3, "--judge", "vote",
        "--gate", "1", "--max-new-tokens", 12,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out, result.output


MODES = ("plain", "select", "self_correct")


def test_every_mode_has_its_answers_and_drafts(evaluated):
    """Drafts of one mode would be taken for those of another, or be lost."""
    out, _ = evaluated
    for benchmark in ("chartqa", "clevr-math"):
        for mode in MODES:
            rows = rows_of(out / f"{benchmark}.{mode}.jsonl")
            records = list(read_drafts(out / f"{benchmark}.{mode}.drafts.jsonl"))
            config = json.loads((out / f"{benchmark}.{mode}.run.json").read_text())["config"]
            assert config["mode"] == mode and [record.id for record in records] == [
                str(row["question_id"]) for row in rows
            ]
            for row, record in zip(rows, records, strict=True):
                assert record.cost.mode == mode
                assert record.cost.tokens == row["usage"]["kept"] + row["usage"]["discarded"]
                assert final_draft(record).accepted and final_draft(record).text == row["text"]
                assert final_draft(record).verdict == row["grade"]["verdict"]
                assert record.images == (row["image_id"],) and record.gold is not None
    assert config["mode_settings"]["gate"] == 1.0


def test_costs_count_every_draft(evaluated):
    """A mode would look cheaper than it is."""
    out, _ = evaluated
    for record in read_drafts(out / "chartqa.select.drafts.jsonl"):
        assert [draft.role for draft in record.drafts] == ["sample"] * 3
        assert record.cost.tokens == sum(draft.tokens for draft in record.drafts)
        assert all(
            draft.segments and draft.segments[0].p_un is not None
            for draft in record.drafts
            if "a " in draft.text
        )
    for record in read_drafts(out / "chartqa.self_correct.drafts.jsonl"):
        assert [draft.role for draft in record.drafts] == ["first", "correction"]
    (plain, *_) = read_drafts(out / "chartqa.plain.drafts.jsonl")
    assert len(plain.drafts) == 1 and plain.drafts[0].role == "first"


def test_the_report_is_printed_and_written(evaluated, tmp_path):
    """The modes' figures would have to be computed by hand."""
    out, said = evaluated
    assert "change from plain" in said and "chartqa.modes.json" in said
    report = json.loads((out / "chartqa.modes.json").read_text())
    assert [mode["name"] for mode in report["modes"]] == list(MODES) and report["questions"] == 2
    select = report["modes"][1]
    assert select["curves"]["sizes"] == [1, 2, 3] and len(select["curves"]["oracle"]) == 3
    assert select["cost"]["tokens"][0] == pytest.approx(3 * select["curves"]["tokens"][0])
    assert (out / "chartqa.modes.svg").read_text().count("self_correct") >= 1
    paths = [out / f"chartqa.{mode}.drafts.jsonl" for mode in MODES]
    compared = call("compare", *paths, "--json", "--out", tmp_path / "report")
    assert compared.exit_code == 0, compared.output
    assert json.loads(compared.stdout) == report == json.loads((tmp_path / "report/modes.json").read_text())
    folder = call("report", out, "--out", tmp_path / "page")
    assert folder.exit_code == 0 and "drafts" not in folder.output


def test_the_same_command_goes_on(evaluated, data):
    """A finished evaluation would be decoded again, or refused as another one."""
    out, _ = evaluated
    again = call(
        "eval", "chartqa", "--model", "tiny-llava", "--data", data, "--out", out, "--mode", "plain", "--mode",
        "select", "--n", 3, "--judge", "vote", "--max-new-tokens", 12,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    other = call("eval", "chartqa", "--model", "tiny-llava", "--data", data, "--out", out, "--mode", "plain",
                 "--mode", "select", "--n", 4, "--max-new-tokens", 12)  # fmt: skip
    assert other.exit_code == 2 and "other settings (mode_settings" in other.output


# ---------------------------------------------------------------------- forms of answers
def test_modes_read_answers_in_the_form_of_each_question(data, tmp_path, monkeypatch):
    """Votes would be counted over whole sentences, and no two samples would agree."""
    asked = []

    def capture(model, processor, requests, **options):
        for request in requests:
            asked.append(request["mode"])
            yield Result("3", "3", (), None, "eos", (), Usage(1, 0, 1, 0.1), ())

    monkeypatch.setattr(reverse.api, "generate_many", capture)
    decoding = Decoding("select", threshold=0.5, mode_settings={"n": 2, "judge": "vote"})
    run(benchmarks.named_one("tabmwp"), (None, None), data, tmp_path, EvalConfig(decoding))
    first, second = (mode.answer_format for mode in asked)
    assert (first.kind, first.unit, second.kind, second.choices) == (
        "number",
        "$",
        "choice",
        ("shop", "stall"),
    )
    assert asked[0].n == 2 and asked[0].judge == "vote"
    (record, _) = read_drafts(tmp_path / "tabmwp.drafts.jsonl")
    assert record.drafts[0].answer == "3" and record.drafts[0].verdict == "wrong"


def test_the_form_reaches_inner_modes():
    """Drafts of an inner mode would be read as text, those of the outer one as numbers."""
    form = AnswerFormat("number")
    mode = set_answer_format(Select(n=2, inner=SelfCorrect(inner=Reflect())), form)
    assert mode.answer_format == mode.inner.answer_format == mode.inner.inner.answer_format == form
    assert set_answer_format(Select(n=2, inner="resample"), form).inner == "resample"


# ---------------------------------------------------------------------- scripted runs
def scripted(question, right):
    """A result with three samples; the second is accepted."""
    text = "Answer: 3" if right else "Answer: 4"
    phrases = (Phrase("Answer", 0, 6, 0.25, "accepted"),)
    drafts = tuple(
        Draft("sample", text, "3" if right else "4", 0.5, 5, 0.2, accepted=i == 1, phrases=phrases)
        for i in range(3)
    )
    return Result(text, text, phrases, True, "eos", (), Usage(5, 10, 9, 0.6), (), answer="3", drafts=drafts)


def asking(stop_after=None):
    def ask(questions):
        for number, question in enumerate(questions):
            if number == stop_after:
                raise KeyboardInterrupt
            yield scripted(question, number == 0)

    return ask


def test_drafts_follow_a_stopped_run(data, tmp_path):
    """Drafts of a half finished run would be compared with those of a whole one."""
    config = EvalConfig(Decoding("select", threshold=0.5), window=2)
    bench = benchmarks.named_one("clevr-math")
    with pytest.raises(KeyboardInterrupt):
        run(bench, (None, None), data, tmp_path, config, ask=asking(1))
    assert not (tmp_path / "clevr-math.drafts.jsonl").exists()
    run(bench, (None, None), data, tmp_path, config, ask=asking())
    first, second = read_drafts(tmp_path / "clevr-math.drafts.jsonl")
    assert [draft.verdict for draft in first.drafts] == ["right"] * 3
    assert [draft.verdict for draft in second.drafts] == ["wrong"] * 3
    assert [draft.accepted for draft in first.drafts] == [False, True, False]
    assert first.drafts[0].segments[0].p_un == 0.25 and first.cost.tokens == 15
    assert first.gold.key() == bench.questions(data)[0].key
    assert first.source == {"benchmark": "clevr-math", "group": "subtraction"}


def test_captions_without_drafts_have_no_file_of_drafts(data, tmp_path):
    """Every run would leave a file that says nothing."""
    write_benchmarks(tmp_path / "scenes", "test", 6)
    answered(tmp_path / "scenes", tmp_path, "chair")
    assert (tmp_path / "chair.jsonl").exists() and not (tmp_path / "chair.drafts.jsonl").exists()


def test_steps_are_verified_in_the_reasoning_world(tmp_path):
    """How well p(</UN>) tells wrong steps, and which errors are corrected, could not be measured."""
    write_reasoning(tmp_path / "data", "test", 8)
    bench = benchmarks.named_one("reasoning")

    def ask(questions):
        for question in questions:
            said, p = f"there are 99 cows. Answer: {question.key.answers[0]}", (0.75, 0.25)
            spans = ((9, 17), (26, len(said)))
            phrases = tuple(
                Phrase(said[a:b], a, b, x, "accepted") for (a, b), x in zip(spans, p, strict=True)
            )
            yield Result(said, said, phrases, True, "eos", (), Usage(9, 0, 9, 0.1), ())

    run(
        bench,
        (None, None),
        tmp_path / "data",
        tmp_path,
        EvalConfig(Decoding("plain", threshold=0.5)),
        ask=ask,
    )
    records = list(read_drafts(tmp_path / "reasoning.drafts.jsonl"))
    assert len(records) == 16 and step_auroc(records).point == 1.0
    for record in records:
        (draft,) = record.drafts
        kinds = [(each.kind, each.verdict, each.p_un) for each in draft.segments]
        assert draft.verdict == "right" and kinds == [
            ("step", "wrong", None), ("phrase", "wrong", 0.75), ("step", "right", None),
            ("phrase", "right", 0.25),
        ]  # fmt: skip


def test_the_end_of_a_curve_is_the_run_itself(tmp_path):
    """Rounded confidences would break ties in another way than the mode has chosen."""
    write_reasoning(tmp_path / "data", "test", 8)
    result = call(
        "eval", "reasoning", "--model", "tiny-qwen", "--data", tmp_path / "data", "--out", tmp_path, "--mode",
        "plain", "--mode", "select", "--n", 3, "--max-new-tokens", 16,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    records = list(read_drafts(tmp_path / "reasoning.select.drafts.jsonl"))
    segments = [segment for record in records for draft in record.drafts for segment in draft.segments]
    assert any(each.p_un is not None for each in segments)
    report = json.loads((tmp_path / "reasoning.modes.json").read_text())
    select = report["modes"][1]
    assert select["accuracy"] == select["curves"]["best"][-1]
    assert report["questions"] == len(records) == 16


def test_segments_take_p_from_the_phrase_at_their_place():
    """p(</UN>) of one step would be that of another, or phrases overlap, which no draft file may hold."""
    verified = (
        DraftSegment(start=0, end=18, kind="step", verdict="wrong", error="count"),
        DraftSegment(start=9, end=17, verdict="wrong", error="count"),
        DraftSegment(start=20, end=30, verdict="right"),
    )
    phrases = [
        {"start": 10, "end": 17, "p_un": 0.75}, {"start": 17, "end": 19, "p_un": 0.5},
        {"start": 31, "end": 33, "p_un": None},
    ]  # fmt: skip
    merged = _merge_segments(verified, phrases)
    assert [(each.start, each.end, each.verdict, each.p_un) for each in merged] == [
        (0, 18, "wrong", None), (9, 17, "wrong", 0.75), (17, 19, "unknown", 0.5), (20, 30, "right", None),
        (31, 33, "unknown", None),
    ]  # fmt: skip


# ---------------------------------------------------------------------- wrong calls
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mode", "plain", "--mode", "plain"], "--mode plain is given twice: give each mode once"),
        (["--mode", "magic"], "--mode must be one of resample, plain,"),
        (["--mode", "plain", "--n", "3"], "--n is not a setting of --mode plain: select, auto have it"),
        (
            ["--mode", "plain", "--mode", "select", "--rounds", "1"],
            "--rounds is not a setting of --mode plain",
        ),
        (["--mode", "select", "--n", "0"], "n must be a whole number of at least 1"),
        (
            ["--mode", "select", "--judge", "luck"],
            "judge must be one of best, vote, weighted, self, value, got 'luck'",
        ),
        (["--mode", "self_correct", "--gate", "3"], "gate must lie in (0, 1], got 3.0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(tmp_path, options, told):
    """A setting would be ignored, and the run be another one than was asked for."""
    result = call(
        "eval", "chartqa", "--model", "tiny-llava", "--out", tmp_path, "--data", "nowhere", *options
    )
    assert result.exit_code == 2 and told in " ".join(result.output.split()), result.output


def test_wrong_files_are_refused(evaluated, tmp_path):
    """Figures would be made of answers to different questions, or of files that have no verdicts."""
    out, _ = evaluated
    plain, other = out / "chartqa.plain.drafts.jsonl", out / "clevr-math.select.drafts.jsonl"
    empty, ungraded = tmp_path / "empty.drafts.jsonl", tmp_path / "ungraded.drafts.jsonl"
    empty.write_text("")
    ungraded.write_text('{"version": 1, "id": "a", "question": "?", "drafts": [{"text": "A dog."}]}\n')
    damaged = tmp_path / "damaged.drafts.jsonl"
    damaged.write_text('{"version": 1, "id": "a", "question": "?", "drafts": [{"text": 3}]}\n')
    for files, told in (
        ((plain, other), "4 questions are answered in only one of the runs"),
        ((plain, out / "chartqa.select.jsonl"), "chartqa.select.jsonl is not a file of drafts"),
        ((plain, out / "nowhere.drafts.jsonl"), "nowhere.drafts.jsonl"),
        ((plain, out / "nowhere.jsonl"), "nowhere.jsonl': there is no such file"),
        ((plain, empty), "empty.drafts.jsonl holds no records"),
        ((plain, ungraded), "no answer has a verdict"),
        ((plain, damaged), "damaged.drafts.jsonl, line 1: drafts.0.text"),
        ((plain, tmp_path / "none.drafts.jsonl"), "no such file"),
        ((plain, plain), "two runs have one name"),
    ):
        result = call("compare", *files)
        assert result.exit_code == 2 and told in " ".join(result.output.split()), result.output
