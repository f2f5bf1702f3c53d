"""Answers on disk: what kills, other settings, torn ends and several processes do to them."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from reverse.data.scenes.benchmark_files import write_benchmarks
from reverse.evaluation.reading.answers import read_run_answers
from reverse.evaluation.runs.answers_files import remove_timing
from reverse.evaluation.runs.benchmark_run import ProcessPlace, question_seed
from tests.evaluation.mock_run import answered
from tests.warm_python import start_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_benchmarks(root, "test", 40)
    return root


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    return answered(data, tmp_path_factory.mktemp("unbroken")).path


def rows(path):
    return [json.dumps(remove_timing(row)) for row in read_run_answers(path, complete=True).rows]


def start(data, out, pause, **environment):
    return start_python("-m", "tests.evaluation.mock_run", data, out, pause, **environment)


def wait_for(child):
    child.join()
    return child.exitcode


def test_twenty_kills_leave_the_rows_of_an_unbroken_run(data, unbroken, tmp_path):
    """A killed run would lose, repeat or tear answers, or answer the rest differently."""
    path = tmp_path / "pope.jsonl"
    draw = random.Random(0)
    reached = [0]
    for _ in range(20):
        child = start(data, tmp_path, 0.002)
        before = path.stat().st_size if path.exists() else 0
        end = time.monotonic() + 20
        wait = draw.random() < 0.85  # else: while it starts
        while wait and time.monotonic() < end and (path.stat().st_size if path.exists() else 0) == before:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
        child.kill()
        assert wait_for(child) == -signal.SIGKILL, "it ended before it was killed"
        reached.append(path.read_bytes().count(b"\n") if path.exists() else 0)
    total = len(rows(unbroken))
    assert reached == sorted(reached) and 0 < reached[-1] < total and len(set(reached)) > 10
    with path.open("ab") as file:  # what a power cut may leave
        file.write(b'{"question_id": 77, "text": "The')
    assert wait_for(start(data, tmp_path, 0)) == 0
    assert rows(path) == rows(unbroken)


def test_two_processes_write_the_file_of_one(data, unbroken, tmp_path):
    """Several GPUs would give another file than one: other rows, another order, shards left behind."""
    children = [start(data, tmp_path, 0.001, RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    assert [wait_for(child) for child in children] == [0, 0]
    assert rows(tmp_path / "pope.jsonl") == rows(unbroken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pope.jsonl", "pope.run.json"]


def test_one_process_goes_on_where_three_stopped(data, unbroken, tmp_path):
    """Answers of a run on other machines would be asked again, or be lost."""
    for rank in range(3):
        with pytest.raises(KeyboardInterrupt):
            answered(data, tmp_path, at=ProcessPlace(rank, 3), stop_after=20 + rank)
    assert len(list(tmp_path.glob("*.shard-*"))) == 3
    with pytest.raises(KeyboardInterrupt):
        answered(data, tmp_path, stop_after=30)  # of its first window, 20 are there already
    asked = []
    outcome = answered(data, tmp_path, progress=lambda done, total: asked.append(done))
    assert outcome.complete and asked[0] == 20 + 21 + 22 + 10
    assert rows(outcome.path) == rows(unbroken) and not list(tmp_path.glob("*.shard-*"))


def test_stopped_with_finished_answers_in_hand(data, unbroken, tmp_path):
    """Ctrl-C would throw away answers that were made and wait for an earlier one."""
    from reverse.custom_generate import Interrupted
    from reverse.evaluation import benchmarks
    from reverse.evaluation.runs.benchmark_run import Decoding, EvalConfig, run
    from tests.evaluation.mock_run import answer

    def ask(questions):
        yield answer(questions[0])
        raise Interrupted({4: answer(questions[4]), 2: answer(questions[2])})

    pope = benchmarks.named("pope")[0]
    with pytest.raises(KeyboardInterrupt):
        run(pope, (None, None), data, tmp_path, EvalConfig(Decoding(threshold=0.5)), ask=ask)
    ids = [row["question_id"] for row in read_run_answers(tmp_path / "pope.jsonl").rows]
    assert ids == [0, 2, 4]
    assert rows(answered(data, tmp_path).path) == rows(unbroken)


def test_a_higher_limit_goes_on_and_a_lower_one_loses_nothing(data, unbroken, tmp_path):
    """Trying on a few pictures first would cost their answers again, or leave them out of order."""
    few = answered(data, tmp_path, images=5)
    assert few.complete and few.total < len(rows(unbroken))
    assert len(rows(few.path)) == few.total
    answered(data, tmp_path)
    assert rows(few.path) == rows(unbroken)
    again = answered(data, tmp_path, images=2)
    assert again.complete and len(rows(few.path)) == len(rows(unbroken))


def test_other_settings_are_refused(data, tmp_path):
    """One file would hold answers of two configurations."""
    answered(data, tmp_path, images=2)
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now.*--out"):
        answered(data, tmp_path, images=2, seed=1)
    (tmp_path / "pope.run.json").unlink()
    with pytest.raises(ValueError, match=r"without pope\.run\.json"):
        answered(data, tmp_path, images=2)


def test_changed_questions_are_refused(data, tmp_path):
    """Answers to other questions under the same ids would pass for answers to these."""
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    answered(copy, tmp_path / "out", "chair", images=2)
    file = copy / "chair_mscoco/chair-500.jsonl"
    file.write_text(file.read_text().replace("Describe this image.", "What is this?"))
    with pytest.raises(ValueError, match="questions: "):
        answered(copy, tmp_path / "out", "chair", images=2)


def test_two_writers_of_one_file(data, tmp_path):
    """Two commands started by mistake would write into each other's lines."""
    child = start(data, tmp_path, 0.05)
    try:
        path = tmp_path / "pope.jsonl"
        end = time.monotonic() + 20
        while time.monotonic() < end and not (path.exists() and path.stat().st_size):
            time.sleep(0.01)
        with pytest.raises(ValueError, match="being written by another process"):
            answered(data, tmp_path)
    finally:
        child.kill()
        child.join()


def test_row_is_a_superset_of_the_published_one(unbroken):
    """Scorers written for the published code could not read our answers."""
    row = read_run_answers(unbroken).rows[0]
    published = {
        "question_id", "prompt", "image_id", "text", "generation_history", "answer_id", "model_id",
        "successful_correction", "metadata",
    }  # fmt: skip
    assert published <= set(row)
    assert list(row)[-1] == "timing" and {"phrases", "attempts", "usage", "config"} <= set(row)
    assert row["phrases"][0].keys() == {"text", "start", "end", "p_un", "status"}


def test_run_record(data, unbroken):
    """Nobody could tell later which questions were asked, how, and with what versions."""
    run = read_run_answers(unbroken).run
    rows_ = read_run_answers(unbroken).rows
    assert run["questions"]["ids"] == [row["question_id"] for row in rows_]
    assert run["images"]["ids"] == list(dict.fromkeys(row["image_id"] for row in rows_))
    assert run["config"]["threshold"] == 0.5 and run["config"]["max_new_tokens"] == 128
    assert {"reverse-vlm", "torch", "transformers"} <= set(run["versions"][0])
    assert run["data"]["llava"] and run["published"] == "scenes"
    assert all(row["config"] == run["config_hash"] for row in rows_)


def test_torn_line_is_reported_and_left_out(unbroken, tmp_path):
    """Half an answer would stop the reader, or be scored."""
    path = tmp_path / "pope.jsonl"
    path.write_bytes(unbroken.read_bytes()[:-40])
    path.with_suffix(".run.json").write_bytes(unbroken.with_suffix(".run.json").read_bytes())
    answers = read_run_answers(path)
    assert answers.is_torn and len(answers.missing) == 1
    assert len(answers.rows) == len(rows(unbroken)) - 1 and len(answers.list_problems()) == 2
    with pytest.raises(ValueError, match="torn"):
        read_run_answers(path, complete=True)


def test_damage_in_the_middle_names_the_line(unbroken, tmp_path):
    """A damaged answer would be dropped without a word."""
    lines = unbroken.read_bytes().splitlines(keepends=True)
    path = tmp_path / "pope.jsonl"
    path.write_bytes(b"".join([*lines[:3], b'{"question_id": 3, \n', *lines[4:]]))
    with pytest.raises(ValueError, match="line 4 is damaged"):
        read_run_answers(path)
    path.write_bytes(b'{"text": "x"}\n')
    with pytest.raises(ValueError, match="line 1 is not an answer"):
        read_run_answers(path)


def test_duplicates_name_both_lines(unbroken, tmp_path):
    """An answer that stands twice would count twice."""
    lines = unbroken.read_bytes().splitlines(keepends=True)
    path = tmp_path / "pope.jsonl"
    path.write_bytes(b"".join([*lines[:5], lines[1]]))
    with pytest.raises(ValueError, match=r"line 2 and again in line 6"):
        read_run_answers(path)


def test_missing_answers_are_listed(unbroken, tmp_path):
    """Questions without an answer would vanish from the denominator."""
    lines = unbroken.read_bytes().splitlines(keepends=True)
    path = tmp_path / "pope.jsonl"
    path.write_bytes(b"".join(lines[:2] + lines[4:]))
    path.with_suffix(".run.json").write_bytes(unbroken.with_suffix(".run.json").read_bytes())
    answers = read_run_answers(path)
    assert answers.missing == [2, 3] and "2 questions have no answer" in answers.list_problems()[0]


def test_another_benchmark_is_refused(data, unbroken, tmp_path):
    """POPE's answers would be scored as captions."""
    with pytest.raises(ValueError, match="answers to pope, not to chair"):
        read_run_answers(unbroken, benchmark="chair")
    theirs = tmp_path / "merge.jsonl"  # of the published code: no record beside it
    theirs.write_text('{"question_id": "a", "text": "Yes"}\n{"question_id": "b", "text": "No"}\n')
    assert len(read_run_answers(theirs, benchmark="pope").rows) == 2
    with pytest.raises(ValueError, match="2 of 2 answers are to no question of pope"):
        read_run_answers(theirs, benchmark="pope", ids=[1, 2, 3])
    with pytest.raises(FileNotFoundError, match="no answers file"):
        read_run_answers(tmp_path / "nowhere.jsonl")


def test_seed_of_a_question_does_not_depend_on_its_place():
    """Answers would depend on the limit, the number of processes, or where a run was stopped."""
    assert question_seed(0, 7) == question_seed(0, 7) != question_seed(1, 7)
    assert question_seed(0, 7) != question_seed(0, 8) and 0 <= question_seed(3, "a") < 2**48


def test_every_reader_names_the_same_line(data, unbroken, tmp_path):
    """One command would name a damaged line, another crash on it or pass it over."""
    from reverse.evaluation.detector.phrase_truth import read_phrases
    from reverse.evaluation.reading.answers import read_answers as scored
    from reverse.evaluation.reading.answers import read_rows

    lines = unbroken.read_bytes().split(b"\n")[:-1]  # an answer holds U+2028, which ends no line
    assert [number for number, _ in read_rows(unbroken)] == list(range(1, len(lines) + 1))
    assert [row for _, row in read_rows(unbroken)] == read_run_answers(unbroken).rows
    assert [answer.row for answer in scored(unbroken)] == read_run_answers(unbroken).rows
    path = tmp_path / "pope.jsonl"
    for damage in (b'{"question_id": 3, ', b"\xff\xfe\x00", b"[" * 100_000):
        path.write_bytes(b"\n".join([*lines[:3], damage, lines[4], b""]))
        for read in (lambda p: list(read_rows(p)), scored, read_phrases, read_run_answers):
            with pytest.raises(ValueError, match=r"line (4 is|1 was)"):
                read(path)


def test_going_on_names_the_damaged_line(data, tmp_path):
    """A run that cannot go on would call every damaged line its first."""
    answered(data, tmp_path, images=2)
    path = tmp_path / "pope.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"question_id": 3', b'{"question_id" 3', 1))
    with pytest.raises(ValueError, match=r"pope\.jsonl, line 4 is damaged.*asked again"):
        answered(data, tmp_path, images=2)
