"""Training and sampling of reasoning models: what is fast is the same as what is plain."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, Event, Thread, Timer

import numpy as np
import pytest
import torch

from experiments.reasoning.__main__ import check_measurements, main
from experiments.reasoning.base_sampling import compute_features, sample_answers
from experiments.reasoning.modes_figure import make_report
from experiments.reasoning.pool_training import PoolConfig, PoolGroup, PoolPart, _Group, train_pools
from experiments.reasoning.pooled_seeds import main as pool_main
from experiments.reasoning.reasoning_measures import MeasuredMode, Measurer, choose_gate
from experiments.reasoning.reasoning_recipe import ReasoningRecipe
from experiments.reasoning.reasoning_rows import (
    AnsweredPicture,
    RowPool,
    RowSource,
    answered_rows,
    base_rows,
    load_encoder,
    make_rows,
    question_prompts,
    share_rows,
)
from experiments.reasoning.reasoning_stages import run_stage
from experiments.shared_prefix import shared_prefix_loss
from experiments.uniform_passes import UniformPass
from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer, RecordedDraft
from reverse.data.scenes.reasoning import (
    draw_reasoning_picture,
    make_reasoning_picture,
    make_reasoning_questions,
    write_rationale,
)
from reverse.errors import DataError, RequestError
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import read_json
from reverse.models import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["llava", "qwen"])
def recipe(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    recipe = ReasoningRecipe(out=str(out), family=request.param).smoke()
    run_stage("init", recipe, lambda line: None)
    return recipe


@pytest.fixture
def source(recipe):
    return RowSource(f"{recipe.out}/init", recipe.data_seed, recipe.side, recipe.tables)


def open_model(recipe, made):
    model, processor = load(f"{recipe.out}/init", dtype="float32")
    passes = UniformPass(model, processor, side=recipe.side, first=made.first, count=made.count)
    return model, processor, passes


def test_the_weighted_loss_is_that_of_the_model(recipe, source):
    """A small model would be trained on something else than what it is run with."""
    made = make_rows(base_rows, range(2), source)
    model, processor, passes = open_model(recipe, made)
    pool = made.pools["base"]
    ids, labels = (torch.from_numpy(array.astype(np.int64)) for array in (pool.ids, pool.labels))
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 1.0])
    features = compute_features(passes, torch.from_numpy(made.pictures))[pool.pictures.astype(np.int64)]
    ours = passes.weighted_loss(features, ids, labels, weights)
    total, weight = 0.0, 0.0
    for row in range(len(ids)):
        length = int((pool.ids[row] != 0).cumsum().argmax()) + 1
        picture = make_reasoning_picture("train", int(pool.pictures[row]), recipe.data_seed, recipe.tables)
        seen = processor.image_processor(images=[draw_reasoning_picture(picture)], return_tensors="pt")
        kinds = {"mm_token_type_ids": (ids[row : row + 1, :length] == processor.image_token_id).int()}
        extra = kinds if recipe.family == "qwen" else {}
        logits = model(input_ids=ids[row : row + 1, :length], **seen, **extra).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, labels[row, 1:length], reduction="none")
        total += float(losses.detach().sum() * weights[row])
        weight += float((labels[row, 1:length] != -100).sum() * weights[row])
    assert float(ours.detach()) == pytest.approx(total / weight, rel=1e-4)


def test_rows_that_share_a_picture_read_it_once_with_the_same_loss_and_gradients(recipe, source):
    """What is trained fast would be another model."""
    made = make_rows(base_rows, range(2), source)
    model, _, passes = open_model(recipe, made)
    model.double()
    pool = made.pools["base"]
    ids, labels = (torch.from_numpy(array.astype(np.int64)) for array in (pool.ids, pool.labels))
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 1.0], dtype=torch.double)
    pictures = torch.from_numpy(made.pictures)
    found = []
    for shared in (False, True):
        model.zero_grad()
        features = passes.see(pictures)
        if shared:
            loss = shared_prefix_loss(passes, features, ids, labels, weights, rows=4)
        else:
            loss = passes.weighted_loss(features.repeat_interleave(4, dim=0), ids, labels, weights)
        loss.backward()
        gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        apart = (found[1][1][name] - gradient).norm() / (gradient.norm() + 1e-9)
        assert apart < 1e-4, (name, apart)


def test_each_picture_gives_its_own_rows(recipe, source):
    """Rows would be trained beside the picture of another question."""
    made = make_rows(base_rows, range(6), source)
    pool = made.pools["base"]
    few = RowPool(pool.ids[4:7], pool.labels[4:7], pool.pictures[4:7])  # three rows of picture 1
    group = _Group(PoolGroup([PoolPart(pool, 2), PoolPart(few, 4, 2.0)], 50), 10, torch.device("cpu"))
    ids, _, weights, pictures = group.draw(torch.Generator().manual_seed(0))
    ids, weights = ids.view(50, 6, -1), weights.view(50, 6)
    assert set(pictures.tolist()) == set(range(6))
    for shown, rows, weight in zip(pictures.tolist(), ids, weights.tolist(), strict=True):
        own = {tuple(row) for row in pool.ids[pool.pictures == shown].tolist()}
        width = pool.ids.shape[1]
        assert {tuple(row[:width].tolist()) for row in rows[:2]} <= own
        assert weight == [1.0, 1.0] + ([2.0, 2.0, 2.0, 0.0] if shown == 1 else [0.0] * 4)
        if shown == 1:
            assert {tuple(row[:width].tolist()) for row in rows[2:5]} == {
                tuple(row) for row in few.ids.tolist()
            }


def test_sampling_at_temperature_0_is_greedy_decoding(recipe, source):
    """Drafts would come from another model than the one that is trained."""
    made = make_rows(question_prompts, [(1_000_000, 1), (1_000_001, 1)], source)
    model, _, passes = open_model(recipe, made)
    features = compute_features(passes, torch.from_numpy(made.pictures))
    prompts = made.pools["prompt"]
    ours = sample_answers(passes, features, prompts, {10**6}, samples=1, temperature=0.0)
    for row in range(2):
        length = int((prompts.ids[row] != 0).cumsum().argmax()) + 1
        ids = torch.from_numpy(prompts.ids[row : row + 1, :length].astype(np.int64))
        said = ours[row][0][:6]
        for step, token in enumerate(said):
            now = torch.cat([ids, torch.tensor([said[:step]], dtype=torch.long)], dim=1)
            hidden = passes.embed(features, now, torch.tensor([int(prompts.pictures[row])]))
            out = passes._decode(hidden, passes.position_ids(1, 0, now.shape[1]))
            assert int(model.get_output_embeddings()(out[0, -1]).argmax()) == token


def test_answers_do_not_depend_on_those_beside_them(recipe, source):
    """Answers that end early leave the batch: those that go on would read another answer's cache."""
    made = make_rows(question_prompts, [(1_000_000 + n, 2) for n in range(6)], source)
    model, _, passes = open_model(recipe, made)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # so that it says many things
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    features = compute_features(passes, torch.from_numpy(made.pictures))
    prompts = made.pools["prompt"]
    options = {"samples": 2, "temperature": 0.0, "most_tokens": 40}
    endless = sample_answers(passes, features, prompts, {10**6}, **options)
    ends = {each[0][9] for each in endless[: len(endless) // 2]}
    together = sample_answers(passes, features, prompts, ends, **options)
    lengths = {len(ids) for each in together for ids in each}
    assert len(lengths) > 1 and max(lengths) > 16, "no answer would go on when others have left"
    for row in range(len(prompts)):
        alone = RowPool(*(getattr(prompts, name)[row : row + 1] for name in ("ids", "labels", "pictures")))
        assert sample_answers(passes, features, alone, ends, **options) == [together[row]]
        assert together[row][0] == together[row][1]


def test_rows_do_not_depend_on_who_makes_them(source, monkeypatch):
    """A run with other workers would train on other rows."""
    whole = make_rows(base_rows, range(5), source)
    monkeypatch.setattr("experiments.reasoning.reasoning_rows.CHUNK", 2)
    parts = make_rows(base_rows, range(5), source)
    assert (whole.pictures == parts.pictures).all()
    for name in ("ids", "labels", "pictures"):
        assert (getattr(whole.pools["base"], name) == getattr(parts.pools["base"], name)).all()


def test_shared_rows_are_those_that_were_made(source, tmp_path):
    """Seeds that share rows would train on others than the first one."""

    def make():
        calls.append(1)
        return make_rows(question_prompts, [(1_000_000 + n, 2) for n in range(3)], source)

    calls = []
    first, second = (share_rows(tmp_path / "rows.safetensors", make) for _ in range(2))
    assert len(calls) == 1
    assert (first.first, first.count) == (second.first, second.count)
    assert (first.pictures == second.pictures).all()
    for name in ("ids", "labels", "pictures"):
        assert (getattr(first.pools["prompt"], name) == getattr(second.pools["prompt"], name)).all()


def test_prompts_end_where_the_answer_begins(recipe, source):
    """The base would go on writing behind an answer that it did not give."""
    made = make_rows(question_prompts, [(1_000_000, 2)], source)
    decode = load_encoder(source.checkpoint).tokenizer.decode
    for row, length in zip(made.pools["prompt"].ids, made.pools["prompt"].lengths, strict=True):
        text = decode(row[:length])
        assert text.rstrip().endswith({"llava": "ASSISTANT:", "qwen": "assistant"}[recipe.family])


def test_answered_questions_become_rows_of_every_pool(recipe, source):
    """A mode would never be trained, without a word."""
    jobs = []
    for index in range(1_000_000, 1_000_006):
        picture = make_reasoning_picture("train", index, recipe.data_seed, recipe.tables)
        question = make_reasoning_questions(picture)[0]
        right = write_rationale(question, picture.truth)
        wrong = write_rationale(question, {name: value + 1 for name, value in picture.truth.items()})
        jobs.append(AnsweredPicture(index, ((right, wrong, right),), index < 1_000_005))
    made = make_rows(answered_rows, jobs, source)
    wanted = {"solve", "judge", "reflect_judge", "correction", "select", "replay", "own", "truth"}
    assert wanted <= set(made.pools)
    assert 5 not in made.pools["judge"].pictures
    assert 5 in made.pools["solve"].pictures


def test_the_figure_shows_what_the_results_hold():
    """The figure in the documentation would be of other modes, or of corrections without a gate."""
    found = read_json(ROOT / "benchmarks/results/modes.json")["details"]["qwen"]["test"]
    report = make_report(found)
    names = [mode["name"] for mode in report["modes"]]
    assert len(set(names)) == len(names) and {"plain", "resample", "refine", "self_correct"} <= set(names)
    shown = {mode["name"]: mode for mode in report["modes"]}
    assert shown["refine"]["accuracy"] == found["modes"]["refine_gated"]["accuracy"]
    curves = shown["plain"]["curves"]
    assert curves["vote"][-1] == found["curves"]["vote"]["8"] and curves["sizes"][-1] == 8
    assert curves["tokens"][-1] == 8 * found["modes"]["plain"]["tokens"][0]


def test_a_gate_is_chosen_by_the_first_answers_of_the_mode_itself():
    """Reflect writes its first answer after its own instruction: plain answers say nothing of its gate."""

    def record(number, confidence, first, last):
        drafts = [
            RecordedDraft(text="a", role="first", verdict=first, judged_by="grading", confidence=confidence),
            RecordedDraft(text="b", role="reflect", verdict=last, judged_by="grading", accepted=True),
        ]
        question = GoldAnswer(answers=("b",), kind="text")
        return DraftRecord(
            id=str(number), question="?", images=("p.png",), gold=question, drafts=tuple(drafts)
        )

    doubtful = [record(number, 0.1, "wrong", "right") for number in range(4)]
    sure = [record(4 + number, 0.9, "right", "wrong") for number in range(6)]
    assert 0.1 < choose_gate([*doubtful, *sure]) <= 0.9


def test_a_run_that_was_stopped_goes_on(recipe, source, tmp_path):
    """Steps before a kill would be lost, or seen twice."""

    def run(config, **options):
        made = make_rows(base_rows, range(4), source)
        model, _, passes = open_model(recipe, made)
        group = PoolGroup([PoolPart(made.pools["base"], 4)], 2)
        pictures = torch.from_numpy(made.pictures)
        train_pools(passes, [group], config, pictures=pictures, **options)
        return model.state_dict()

    def stop(line):
        if line.startswith("step 4"):
            raise KeyboardInterrupt

    unbroken = run(PoolConfig(str(tmp_path / "a"), 4))
    config = PoolConfig(str(tmp_path / "b"), 4, checkpoint_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(config, say=stop)
    assert (tmp_path / "b").exists()
    resumed = run(config)
    assert not (tmp_path / "b").exists()
    for name, weight in unbroken.items():
        assert torch.allclose(weight, resumed[name], atol=1e-6), name


def test_all_stages_run(recipe):
    """A stage would fail after minutes on a GPU."""
    if recipe.family == "llava":
        pytest.skip("a minute, and only the family's parts differ, which the other tests cover")
    arguments = ["--smoke", "--family", recipe.family, "--out", recipe.out]
    main([*arguments, "--stages", "init,base,sample,one,truth,answer,report"])
    with open(f"{recipe.out}/report-one.json", encoding="utf-8") as file:
        report = json.load(file)
    assert {"resample_gain", "trained_truth", "tree_over_vote"} <= set(report["test"]["claims"])
    pooled = f"{recipe.out}/modes.json"
    shutil.copytree(recipe.out, f"{recipe.out}/again", ignore=shutil.ignore_patterns("again"))
    pool_main([recipe.out, f"{recipe.out}/again", "--out", pooled])
    with open(pooled, encoding="utf-8") as file:
        content = json.load(file)
    claims, alone = content["claims"]["qwen"]["test"], report["test"]["claims"]
    assert claims["base_accuracy"][0] == pytest.approx(alone["base_accuracy"][0])
    assert len(content["details"]["qwen"]["test"]["seeds"]) == 2


def make_measurer(recipe, folder, said, writer=None):
    model, processor = load(f"{recipe.out}/init", dtype="float32")
    return Measurer(model, processor, recipe, folder, said.append, writer)


@pytest.mark.parametrize("writes", ["itself", "by a process"])
def test_measurers_of_one_folder_share_its_modes(recipe, tmp_path, writes):
    """Without locks two processes that measure one model would answer every mode twice."""
    modes = {name: MeasuredMode("plain") for name in "abcd"}
    work, said, read, ready = [("test", name) for name in modes], [], {}, Barrier(2)

    def measure(number):
        with (
            ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            if writes != "itself"
            else nullcontext() as writer
        ):
            measurer = make_measurer(recipe, tmp_path, said, writer)
            ready.wait(timeout=60)
            measurer.answer_all(work, modes)
            found = [measurer.read("test", name, mode) for name, mode in modes.items()]
            read[number] = [[draft.text for each in records for draft in each.drafts] for records in found]

    threads = [Thread(target=measure, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(line.split()[2].strip(":") for line in said) == list(modes)
    assert read[0] == read[1] and len(read[0][0]) == recipe.test_questions


def test_a_mode_that_another_process_did_not_finish_is_answered(recipe, tmp_path):
    """A process that was killed would leave its mode out of the report, or stop the others with an error."""
    said, taken, stop = [], Event(), Event()

    def hold():
        with output_lock(tmp_path / "test" / "a.jsonl"):
            taken.set()
            stop.wait(timeout=60)

    holder = Thread(target=hold)
    holder.start()
    assert taken.wait(timeout=60)
    measurer, mode = make_measurer(recipe, tmp_path, said), {"a": MeasuredMode("plain")}
    measurer.answer("test", "a", mode["a"])
    assert not said
    Timer(0.5, stop.set).start()
    measurer.answer_all([("test", "a")], mode)
    holder.join(timeout=60)
    assert len(said) == 1 and len(measurer.read("test", "a", mode["a"])) == recipe.test_questions


def test_drafts_of_other_settings_are_refused(recipe, tmp_path):
    """The figures of a new model would be those of the old one."""
    own = replace(recipe, out=str(tmp_path))
    shutil.copytree(f"{recipe.out}/init", tmp_path / "one")
    check_measurements(own, "one")
    check_measurements(own, "one")
    with pytest.raises(DataError, match="other settings"):
        check_measurements(replace(own, test_questions=own.test_questions + 1), "one")


def test_unknown_modes_are_refused_before_any_training():
    """A misspelt mode would be found after all training."""
    with pytest.raises(RequestError, match="unknown modes resampel"):
        ReasoningRecipe(modes="resampel")
    assert ReasoningRecipe(modes="tree", splits="test,shift").measured == [
        ("test", "plain"), ("test", "tree"), ("shift", "plain"), ("shift", "tree"),
    ]  # fmt: skip
