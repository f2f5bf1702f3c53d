"""Self-training on resident models: what is trained on, what is measured, and what goes on after a stop."""

import json

import pytest
from PIL import Image

import reverse
from experiments.reasoning.reasoning_recipe import ReasoningRecipe
from experiments.reasoning.reasoning_stages import run_stage
from experiments.selftraining.__main__ import main
from experiments.selftraining.gated_answers import apply_gate
from experiments.selftraining.loop_claims import compute_claims, describe_runs, read_runs
from experiments.selftraining.loop_claims import main as claim
from experiments.selftraining.loop_rows import KINDS, make_pool_record
from experiments.selftraining.loop_settings import SYSTEMS, LoopSettings
from experiments.selftraining.loop_stages import FIRST_PICTURE, SelfTraining
from experiments.selftraining.resident_answers import ModeMeasurement
from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer, RecordedDraft
from reverse.data.scenes.reasoning import make_reasoning_picture, make_reasoning_questions, write_rationale
from reverse.errors import DataError, RequestError
from reverse.modes import Plain, Refine, SelfCorrect


@pytest.fixture(scope="module", params=["llava", "qwen"])
def start(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    run_stage("init", ReasoningRecipe(out=str(out), family=request.param).smoke(), lambda line: None)
    return out / "init"


def asked(kind="count"):
    pictures = (make_reasoning_picture("train", index, 0, 0.0) for index in range(100))
    picture, question = next(
        (each, question)
        for each in pictures
        for question in make_reasoning_questions(each)
        if question.kind == kind
    )
    right = write_rationale(question, picture.truth)
    wrong = write_rationale(question, {name: value + 1 for name, value in picture.truth.items()})
    return picture, question, right, wrong


def rows_of(kind, *iterations, verify="answer", about="count"):
    picture, question, _, _ = asked(about)
    kept = KINDS[kind].keep(make_pool_record(picture, question, iterations, verify=verify))
    return [] if kept is None else KINDS[kind].view(kept, KINDS[kind].settings).rows


def test_rows_are_those_of_the_loops():
    """The experiment would measure another method than the one that users run."""
    _, _, right, wrong = asked()
    (own,) = rows_of("own", (wrong, right), (right, wrong))
    assert "</UN>" not in own["conversations"][1]["value"]
    assert not rows_of("own", (wrong,))
    (refined,) = rows_of("refine", (wrong, right))
    assert wrong in refined["conversations"][0]["value"]
    assert not rows_of("refine", (right, right))
    assert len(rows_of("select", (wrong, right))) == 2
    (corrected,) = rows_of("corrected", (right,), (wrong,))  # of the newest iteration
    assert [turn.get("targets") for turn in corrected["conversations"][1::2]] == ["none", None]
    assert len(rows_of("kept", (right, wrong))) == 1 and not rows_of("kept", (wrong,))
    assert len(rows_of("reflected", (wrong,))) == 1


def test_a_right_answer_by_luck_counts_only_as_published():
    """Wrong steps would be trained although steps are verified."""
    picture, question, _, lucky = asked("diff")  # both counts are too large by one
    assert len(rows_of("own", (lucky,), about="diff")) == 1
    assert not rows_of("own", (lucky,), about="diff", verify="steps")
    assert make_pool_record(picture, question, ((lucky,),), verify="steps").drafts[0].verdict == "right"


def scripted_texts(_):
    """What is sampled: a right and a wrong answer to every question."""
    for index in range(FIRST_PICTURE, FIRST_PICTURE + 4):
        picture = make_reasoning_picture("train", index, 0, 0.35)
        for question in make_reasoning_questions(picture)[:2]:
            wrong = {name: value + 1 + place for place, (name, value) in enumerate(picture.truth.items())}
            yield from (write_rationale(question, picture.truth), write_rationale(question, wrong))


def test_every_system_runs_and_a_second_run_does_nothing(start, tmp_path, capsys, monkeypatch):
    """A run of an hour would end in an error, or begin anew when it is started again."""
    systems = "r3v,longer,sco,srpo"  # the others have no other kind of rows, or of answers
    words = ["--smoke", "--start", str(start), "--out", str(tmp_path / "run"), "--systems", systems]
    monkeypatch.setattr("experiments.selftraining.loop_stages.split_texts", scripted_texts)
    main(words)
    told = capsys.readouterr().out
    measured = {path.stem for path in (tmp_path / "run" / "measure").glob("*.json")}
    rounds = {name: (1, 2) if SYSTEMS[name].resamples else (1,) for name in systems.split(",")}
    samples = {f"{name}-sample-2" for name in systems.split(",") if SYSTEMS[name].resamples}
    assert measured == {"start"} | {f"{name}-{n}" for name, numbers in rounds.items() for n in numbers}
    assert "r3v-2: rows {'own': 8" in told and "'refine'" in told and "'reflected'" in told
    main(words)
    assert capsys.readouterr().out == ""
    found, _ = read_runs([tmp_path / "run"])
    assert all(right.shape == (1, 3) for modes in found.values() for right in modes.values())
    out = tmp_path / "results.json"
    (tmp_path / "run" / "star-1.old-1").mkdir()
    (tmp_path / "run" / "star-1.old-1" / "stage.json").write_text("{}")
    claim([str(tmp_path / "run"), "--name", "tiny", "--out", str(out)])
    found = json.loads(out.read_text())["parts"]["loops_tiny"]
    assert found["command"].endswith("--name tiny")
    assert set(found["cost"][0]["stages"]) == {"sample-1", *measured, *samples} - {"start"}


def test_nothing_to_train_on_is_said(start, tmp_path):
    """A start that is never right would be trained on nothing, without a word."""
    words = ["--smoke", "--start", str(start), "--out", str(tmp_path / "run"), "--systems", "star"]
    with pytest.raises(DataError, match="star-1: no sample is right"):
        main(words)


def test_answers_are_those_of_the_engine(tmp_path):
    """What is measured fast would be another model's or another mode's answer."""
    settings = LoopSettings(out=str(tmp_path), pictures=1, test_questions=4)
    loop = SelfTraining(settings, lambda line: None)
    resident = loop._open_model(loop.start)
    measuring = ModeMeasurement(
        resident, loop._compute_test_features(resident.passes), settings, lambda line: None
    )
    measuring.run(("refine", "self_correct"))
    model, processor = reverse.load("tiny-reasoner")
    plain = Plain(keep_phrases=True)
    modes = {"greedy": plain, "refine": Refine(inner=plain), "self_correct": SelfCorrect(inner=plain)}
    config = reverse.ResamplingConfig(hints=0)
    for name, mode in modes.items():
        requests = [
            reverse.Request(
                Image.fromarray(each.picture), each.question.text, mode=mode, config=config,
                max_new_tokens=160,
            )
            for each in measuring.asked
        ]  # fmt: skip
        engine = reverse.Engine(model, processor)
        answers = [handle.result() for handle in [engine.submit(each) for each in requests]]
        texts = [each.drafts[-1].text if each.drafts else each.text for each in answers]
        right = [measuring._grade(number, text).right for number, text in enumerate(texts)]
        assert "".join("01"[each] for each in right) == measuring.found[name]["right"]
        tokens = sum(each.usage.kept + each.usage.discarded for each in answers)
        ends = sum(max(1, len(each.drafts)) for each in answers)  # ends of answers are counted there
        assert measuring.found[name]["tokens"] == tokens - ends


def test_a_gate_refines_doubtful_answers_only():
    """Tokens and accuracy of a gate would be those of refining always."""

    def record(number, confidence, verdicts):
        drafts = [
            RecordedDraft(
                text="3", role=role, verdict=verdict, confidence=confidence, tokens=tokens,
                accepted=role == "refinement", judged_by="grading",
            )
            for role, verdict, tokens in zip(("first", "refinement"), verdicts, (10, 7), strict=True)
        ]  # fmt: skip
        gold = GoldAnswer(kind="number", answers=("3",))
        return DraftRecord(id=f"q{number}", question="How many?", gold=gold, drafts=tuple(drafts))

    refined = [
        record(0, 0.9, ("right", "wrong")),
        record(1, 0.2, ("wrong", "right")),
        record(2, 0.3, ("wrong", "wrong")),
    ]
    found = apply_gate(refined, 0.3)
    assert [found[name]["right"] for name in ("greedy", "refine", "refine_gated")] == ["100", "010", "110"]
    assert [found[name]["tokens"] for name in ("greedy", "refine", "refine_gated")] == [30, 51, 37]
    assert found["greedy"]["confidence"] == [0.9, 0.2, 0.3]


def test_a_gate_is_measured_through_the_engine(tmp_path, monkeypatch):
    """The last hour of a run would end in an error."""
    monkeypatch.setattr("experiments.selftraining.gated_answers.VAL_QUESTIONS", 3)
    settings = LoopSettings(out=str(tmp_path), pictures=1, test_questions=3)
    loop = SelfTraining(settings, lambda line: None)
    loop._measure_gate("start")
    (tmp_path / "measure" / "start.json").write_text((tmp_path / "measure" / "start-gated.json").read_text())
    found, measured = read_runs([tmp_path])
    assert set(found["start-gated"]) == {"greedy", "refine", "refine_gated"}
    before = (tmp_path / "measure" / "start-gated.json").stat().st_mtime_ns
    loop._measure_gate("start")
    assert (tmp_path / "measure" / "start-gated.json").stat().st_mtime_ns == before
    assert 0 <= measured[0]["start-gated"]["modes"]["refine_gated"]["gate"] <= 1
    other = SelfTraining(LoopSettings(out=str(tmp_path), pictures=1, test_questions=4), lambda line: None)
    other._measure_gate("start")  # not the drafts of the other settings
    told = json.loads((tmp_path / "measure" / "start-gated.json").read_text())
    assert len(told["modes"]["greedy"]["right"]) == 4


def write_measure(folder, model, **modes):
    (folder / "measure").mkdir(parents=True, exist_ok=True)
    found = {name: {"right": right, "tokens": 30} for name, right in modes.items()}
    (folder / "measure" / f"{model}.json").write_text(json.dumps({"settings": {}, "modes": found}))


def test_gains_are_paired_over_questions_and_seeds(tmp_path):
    """An interval would be that of other questions, or of one seed."""
    for seed, (before, after) in enumerate([("0011", "0111"), ("0011", "1111")]):
        write_measure(tmp_path / str(seed), "start", greedy=before)
        write_measure(tmp_path / str(seed), "r3v-1", greedy=after, refine="1111")
    run, _ = read_runs([tmp_path / "0", tmp_path / "1"])
    claims = compute_claims(run)
    assert claims["start_accuracy"][0] == 0.5 and claims["r3v_iter1_gain"][0] == pytest.approx(0.375)
    assert "r3v_over_star" not in claims
    sure = {"right": "0011", "tokens": 40, "confidence": [0.1, 0.6, 0.5, 0.9]}
    for seed in ("0", "1"):
        told = {"settings": {}, "modes": {"greedy": sure}}
        (tmp_path / seed / "measure" / "start-gated.json").write_text(json.dumps(told))
    found = describe_runs([tmp_path / "0", tmp_path / "1"])
    assert found["claims"]["confidence_auroc_start"] == 0.75
    assert [each["r3v_iter1_gain"] for each in found["seeds"]] == [0.25, 0.5]
    assert found["fix_and_break"]["r3v-1 refine"]["fixed"][0] == pytest.approx(0.125)
    write_measure(tmp_path / "2", "start", greedy="001")
    with pytest.raises(DataError, match="other numbers of questions"):
        read_runs([tmp_path / "0", tmp_path / "2"])
    told = {"settings": {"steps": 50}, "modes": {"greedy": {"right": "0011", "tokens": 30}}}
    (tmp_path / "0" / "measure" / "star-1.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"star-1 was measured with other settings \(steps\)"):
        read_runs([tmp_path / "0"])
    with pytest.raises(DataError, match="no measurements of a start"):
        read_runs([tmp_path / "nowhere"])


def test_unknown_settings_are_refused():
    """A typing error would run for an hour before it is seen."""
    with pytest.raises(RequestError, match="unknown systems stat: there are r3v, star"):
        LoopSettings(systems="r3v,stat")
    with pytest.raises(RequestError, match="gated names r3v2: there are longer-1, r3v-1, r3v-2, star-1"):
        LoopSettings(gated="start,r3v2")
    with pytest.raises(RequestError, match="test_samples must be at most 3, got 8"):
        LoopSettings(test_samples=8)
    with pytest.raises(RequestError, match="verify must be answer or steps"):
        LoopSettings(verify="all")
