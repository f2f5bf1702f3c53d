"""MMHal-Bench and HaloQuest with a judge of our own on 127.0.0.1: all it may do wrong, and what it costs."""

import json
import time

import pytest

from reverse.endpoints.client import Endpoint
from reverse.evaluation.benchmarks import haloquest, mmhal
from reverse.evaluation.runs.scoring import score_file
from reverse.evaluation.scoring import judge
from tests.chat_server import completion
from tests.evaluation.scoring.making import row, write_answers
from tests.warm_python import start_python

SECRET = "a rejected phrase that no judge may see"


@pytest.fixture
def serve(chat_server):
    """Servers; `behave(n, body)` gives (status, content) for the n-th request of a chat."""

    def make(behave):
        def respond(handler, body):
            status, content = behave(handler.repeat, body)
            handler.give(b"<html>busy</html>" if content == "RAW" else completion(content, 100, 7), status)

        return chat_server(respond)

    return make


def asked_of(body):
    return json.loads(body["messages"][1]["content"])


def a_judge(server, tmp_path, timeout=5.0, attempts=3, **settings):
    endpoint = Endpoint(server.url, "m", "key", timeout=timeout, attempts=attempts, backoff=0.001)
    return judge.Judge(endpoint, tmp_path / "judge.jsonl", **settings)


def figures(scored):
    table, metrics = scored
    sums = table.sums()
    return {metric.name: float(metric.of(sums)) for metric in metrics}


@pytest.fixture
def mmhal_files(tmp_path):
    """96 questions and answers; number n deserves rating n % 7."""
    items = [
        {"question_type": ("attribute", "counting")[n % 2], "image_content": ["Dog", "Cat"],
         "question": f"What is {n}?", "gt_answer": f"It is {n}."}
        for n in range(96)
    ]  # fmt: skip
    (tmp_path / "response_template.json").write_text(json.dumps(items))
    rows = [
        row(
            n,
            f"answer {n}",
            f"{n}.jpg",
            f"What is {n}?",
            generation_history=[SECRET],
            phrases=[{"text": SECRET}],
        )
        for n in range(96)
    ]
    return tmp_path, write_answers(tmp_path / "a.jsonl", rows)


@pytest.fixture
def halo_files(tmp_path):
    """60 questions of three types; every third answer is right."""
    kinds = ("false premise", "visual challenging", "insufficient context")
    items = [
        {"question_id": f"q{n}", "image": f"{n}.jpg", "text": f"What is {n}?", "answer": f"It is {n}.",
         "hallucination_type": kinds[n % 3], "image_type": ("real", "generated")[n % 2]}
        for n in range(60)
    ]  # fmt: skip
    (tmp_path / "haloquest-eval.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rows = [row(f"q{n}", f"answer {n}", f"{n}.jpg", metadata={"history": SECRET}) for n in range(60)]
    return tmp_path, write_answers(tmp_path / "a.jsonl", rows)


def rate(body):
    number = int(asked_of(body)["answer of the model"].split()[1])
    return json.dumps({"reason": "so", "rating": number % 7})


def right(body):
    number = int(asked_of(body)["answer of the model"].split()[1])
    return json.dumps({"correct": number % 3 == 0})


RATINGS = [n % 7 for n in range(96)]


def test_mmhal_scores(mmhal_files, serve, tmp_path):
    """Ratings would go to other answers, the wrong side of 3 be a hallucination, or the cost stay unsaid."""
    folder, path = mmhal_files
    server = serve(lambda n, body: (200, rate(body)))
    scored = score_file(path, folder, judge=a_judge(server, tmp_path, seed=5, price_in=10, price_out=20))
    found, notes = figures(scored), scored[0].notes
    assert found["score"] == pytest.approx(sum(RATINGS) / 96)
    assert found["hallucination"] == pytest.approx(sum(r < 3 for r in RATINGS) / 96)
    assert found["score@counting"] == pytest.approx(sum(RATINGS[1::2]) / 48)
    assert found["failed"] == 0 and "score_at_best" not in found
    assert notes["prompt"] == mmhal.PROMPT and notes["judge"] == "m" and notes["seed"] == 5
    assert notes["cost"]["tokens_in"] == 9600 and notes["cost"]["money"] == pytest.approx(0.1094, abs=1e-4)
    assert all(body["seed"] == 5 and body["temperature"] == 0 for body in server.bodies)


def test_the_judge_sees_the_answer_only(mmhal_files, halo_files, serve, tmp_path):
    """Rejected phrases in the row would tell the judge what was doubtful."""
    folder, path = halo_files
    server = serve(lambda n, body: (200, right(body)))
    score_file(path, folder, "haloquest", judge=a_judge(server, tmp_path))
    assert len(server.bodies) == 60 and SECRET not in json.dumps(server.bodies)
    fields = {key for body in server.bodies for key in asked_of(body)}
    assert fields == {"question", "reference answers", "answer of the model"}


def test_haloquest_scores(halo_files, serve, tmp_path):
    """Types would be mixed, or text of the file be taken for the verdict."""
    folder, path = halo_files
    server = serve(lambda n, body: (200, right(body)))
    found = figures(score_file(path, folder, judge=a_judge(server, tmp_path)))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["accuracy@false premise"] == 1 and found["accuracy@visual challenging"] == 0
    assert found["accuracy@real"] == pytest.approx(1 / 3)


def test_failures_stay_in_the_denominator(halo_files, serve, tmp_path):
    """A judge that fails on hard answers would raise the score: garbage, timeouts, refusals, HTML."""

    def behave(time_, body):
        number = int(asked_of(body)["answer of the model"].split()[1])
        if number == 0:
            return 200, "I think it is fine."
        if number == 3:
            return 400, "no"
        if number == 6:
            return 200, "RAW"
        if number == 9:
            time.sleep(1.2)
        if number == 12:
            return 200, '{"correct": "perhaps"}'
        return 200, right(body)

    folder, path = halo_files
    server = serve(behave)
    scored = score_file(path, folder, judge=a_judge(server, tmp_path, timeout=0.4, attempts=2))
    found, table = figures(scored), scored[0]
    assert table.columns["failed"].sum() == 5 and len(table.clusters) == 60
    assert found["accuracy"] == pytest.approx(15 / 60) and found["accuracy_at_best"] == pytest.approx(20 / 60)
    assert found["failed"] == pytest.approx(5 / 60)
    assert table.notes["failed"] == 5
    assert table.notes["failures"] == {"garbage": 2, "refused": 1, "unreachable": 2}


def test_garbage_is_handed_back_and_429_waited_for(halo_files, serve, tmp_path):
    """One slip of the judge, or a busy minute, would cost a verdict."""

    def behave(time_, body):
        if len(body["messages"]) == 2:
            return (429, "") if time_ == 1 else (200, "Let me think: {not json")
        assert "JSON object" in body["messages"][-1]["content"]
        return 200, f"<think>{{}}</think>```json\n{right(body)}\n```"

    folder, path = halo_files
    scored = score_file(path, folder, judge=a_judge(serve(behave), tmp_path))
    assert figures(scored)["accuracy"] == pytest.approx(1 / 3)
    assert scored[0].notes["cost"]["retries"] == 60 and scored[0].notes["cost"]["garbage"] == 60


def test_a_second_time_asks_nothing(mmhal_files, serve, tmp_path):
    """Scoring twice would cost twice, and could give another score; another seed must ask anew."""
    folder, path = mmhal_files
    server = serve(lambda n, body: (200, rate(body)))
    first = figures(score_file(path, folder, judge=a_judge(server, tmp_path)))
    table, metrics = score_file(path, folder, judge=a_judge(server, tmp_path))
    assert figures((table, metrics)) == first and len(server.bodies) == 96
    assert table.notes["cost"]["asked"] == 0 and table.notes["cost"]["cached"] == 96
    score_file(path, folder, judge=a_judge(server, tmp_path, seed=1))
    assert len(server.bodies) == 192


def test_killed_and_started_again(mmhal_files, serve, tmp_path):
    """A long judging that is killed would begin from nothing, or lose what was paid for."""
    folder, path = mmhal_files
    pace = [0.02]

    def behave(n, body):
        time.sleep(pace[0])
        return 200, rate(body)

    server = serve(behave)
    environment = {"REVERSE_JUDGE_BASE_URL": server.url, "REVERSE_JUDGE_MODEL": "m"}
    command = ["-m", "reverse", "score", path, "--truth", folder, "--concurrency", "2"]
    process = start_python(*command, **environment)
    cache = path.with_name("a.jsonl.judge.jsonl")
    while not (cache.exists() and cache.read_bytes().count(b"\n") > 20):
        time.sleep(0.01)
        assert process.is_alive()
    process.kill()
    process.join()
    with cache.open("r+b") as file:
        file.truncate(cache.stat().st_size - 9)  # a torn line
    kept, before = cache.read_bytes().count(b"\n"), -1
    while before != len(server.bodies):  # what was under way when it was killed is still being read
        before = len(server.bodies)
        time.sleep(0.5)
    pace[0] = 0
    done = start_python(*command, "--json", "--rounds", "0", stdout=tmp_path / "report", **environment)
    done.join()
    report = json.loads((tmp_path / "report").read_text())
    assert report["metrics"]["score"]["value"] == pytest.approx(sum(RATINGS) / 96)
    assert len(server.bodies) - before == 96 - kept == report["notes"]["cost"]["asked"]


def test_a_server_that_is_gone(mmhal_files, tmp_path, serve):
    """Every answer would be waited for, and the whole run be counted as failed."""
    folder, path = mmhal_files
    server = serve(lambda n, body: (503, ""))
    with pytest.raises(ValueError, match=r"20 answers in a row got no reply .* answers so far are kept"):
        score_file(path, folder, judge=a_judge(server, tmp_path, attempts=1))
    few = write_answers(tmp_path / "few.jsonl", [row(n, "a dog", f"{n}.jpg") for n in range(3)])
    with pytest.raises(ValueError, match="3 answers in a row got no reply"):
        score_file(few, folder, "mmhal", judge=a_judge(server, tmp_path, attempts=1), partial=True)
    with pytest.raises(ValueError, match="set REVERSE_LLM_KEY"):
        score_file(path, folder, judge=a_judge(serve(lambda n, body: (401, "")), tmp_path))


def test_names_of_the_environment(monkeypatch, tmp_path):
    """The judge could not be another model than the one that makes data, or would have to be."""
    for name in ("BASE_URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"REVERSE_JUDGE_{name}", raising=False)
        monkeypatch.delenv(f"REVERSE_LLM_{name}", raising=False)
    with pytest.raises(ValueError, match="REVERSE_JUDGE_BASE_URL is not set"):
        judge.Judge.from_environment(tmp_path / "c")
    monkeypatch.setenv("REVERSE_LLM_BASE_URL", "http://a/v1")
    monkeypatch.setenv("REVERSE_LLM_MODEL", "shared")
    monkeypatch.setenv("REVERSE_JUDGE_MODEL", "own")
    endpoint = judge.Judge.from_environment(tmp_path / "c").endpoint
    assert (endpoint.base_url, endpoint.model, endpoint.key) == ("http://a/v1", "own", None)


@pytest.mark.parametrize("text", ["", "no", "{", "[1]", '{"a": 1} {"a": 2}', "{" * 5000, '"rating: 5"'])
def test_replies_without_one_object(text):
    """Half a reply, or two verdicts, would be taken for one."""
    with pytest.raises(ValueError):
        judge.find_object(text)


def test_ratings_that_are_none():
    """'rating: 60', 5.5 or true would be scores."""
    for rating in (7, -1, 2.5, True, None, "high", "10", [3]):
        with pytest.raises(ValueError, match="0 to 6"):
            mmhal.read_rating({"rating": rating})
    assert [mmhal.read_rating({"rating": r}) for r in (0, 6.0, "4")] == [0, 6, 4]
    for verdict in (1, None, "yes", []):
        with pytest.raises(ValueError, match="true or false"):
            haloquest.read_verdict({"correct": verdict})


def test_answers_that_do_not_fit(mmhal_files, serve, tmp_path):
    """Money would be spent on answers to another benchmark."""
    folder, path = mmhal_files
    server = serve(lambda n, body: (200, rate(body)))
    rows = [row(f"random/{n}", "Yes") for n in range(3)]
    with pytest.raises(ValueError, match="not answers to MMHal-Bench"):
        score_file(write_answers(path, rows), folder, "mmhal", judge=a_judge(server, tmp_path))
    with pytest.raises(ValueError, match="scored by a judge"):
        score_file(path, folder, "mmhal")
    assert not server.bodies


def test_answers_about_other_pictures(halo_files, serve, tmp_path):
    """Ids are small numbers in many lists: answers to another would be judged as if to these questions."""
    folder, path = halo_files
    server = serve(lambda n, body: (200, right(body)))
    rows = [row(f"q{n}", "a dog", f"{n + 1}.jpg") for n in range(60)]
    with pytest.raises(ValueError, match=r"line 1: question 'q0' is about 0\.jpg, its answer about 1\.jpg"):
        score_file(write_answers(path, rows), folder, "haloquest", judge=a_judge(server, tmp_path))
    rows = [row(f"q{n}", "a dog", f"{n}.png") for n in (*range(60), 7)]  # the same, in another format
    rows[-1]["prompt"] = "once more"
    with pytest.raises(ValueError, match="line 61: question 'q7' is answered in line 8 already"):
        score_file(write_answers(path, rows), folder, "haloquest", judge=a_judge(server, tmp_path))
    assert not server.bodies
