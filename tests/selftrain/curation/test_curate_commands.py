"""`reverse curate` from the command line: a server, checkpoints, pictures, mixes and descriptions."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.draft_record import RecordedDraft
from reverse.data.scenes import make_scene, render_scene
from reverse.errors import RequestError
from reverse.selftrain.curation.image_descriptions import DescriptionPattern
from reverse.selftrain.curation.tasks.rating_task import MixPlan, choose_mix
from tests.selftrain.curation.curating import make_record, number_of


def run(*arguments):
    return CliRunner().invoke(app, ["curate", *map(str, arguments)])


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working folder with a picture and six questions about it, and no model in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("BASE_URL", "MODEL", "KEY", "API_VERSION"):
        monkeypatch.delenv(f"REVERSE_LLM_{name}", raising=False)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(render_scene(make_scene("test", 0))).save("pictures/a.png")
    write_drafts(tmp_path / "in.jsonl", [make_record(n, images=("a.png",)) for n in range(6)])
    return tmp_path


@pytest.fixture
def teacher(chat_server, world, monkeypatch):
    """The teacher of the environment, which answers every question with its number."""
    server = chat_server(lambda handler, body: handler.give(f"<answer>{number_of(body)}</answer>"))
    monkeypatch.setenv("REVERSE_LLM_BASE_URL", server.url)
    monkeypatch.setenv("REVERSE_LLM_MODEL", "m")
    return server


def test_pictures_are_sent_as_data(teacher):
    """The teacher would not see the picture, or another one."""
    result = run("answer-eval", "in.jsonl", "out.jsonl", "--images", "pictures", "--price-in", 5)
    assert result.exit_code == 0, result.output
    assert "6 answers right, 0 wrong, 0 unknown" in result.stdout
    assert "6 replies, 600 tokens in, 60 out, 0.00 money" in result.stdout
    part = teacher.bodies[0]["messages"][1]["content"][0]
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == Path("pictures/a.png").read_bytes()


def test_pictures_are_sent_by_address_or_described(teacher, world):
    """A server that fetches pictures would get other addresses; one that reads none would get some."""
    assert run("answer-eval", "in.jsonl", "a.jsonl", "--image-url", "https://example.com/x/").exit_code == 0
    assert {body["messages"][1]["content"][0]["image_url"]["url"] for body in teacher.bodies} == {
        "https://example.com/x/a.png"
    }
    teacher.bodies.clear()
    (world / "d.jsonl").write_text('{"image": "a.png", "description": "Two dogs."}\n')
    assert run("answer-eval", "in.jsonl", "b.jsonl", "--image-descriptions", "d.jsonl").exit_code == 0
    parts = [part for body in teacher.bodies for part in body["messages"][1]["content"]]
    assert {part["type"] for part in parts} == {"text"} and "Two dogs." in parts[0]["text"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--upload-image"], "--image-url"),
        (["--image-url", "ftp://x"], "must begin with http"),
        (["--image-url", "http://x", "--image-descriptions", "d.jsonl"], "give one of them"),
        (["--extra", "[1]"], "must be a JSON object"),
        (["--extra", '{"model": "x"}'], "leave it out"),
        (["--temperature", "-1"], "must lie in [0, 10]"),
        (["--top-p", "0"], "must lie in (0, 1]"),
        (["--samples", "2", "--temperature", "0"], "try --temperature 0.9"),
        (["--mode", "tree", "--model", "tiny-llava"], "must be plain or resample"),
        (["--model", "tiny-llava", "--image-url", "http://x"], "give a checkpoint --images"),
        (["--model", "tiny-llava", "--extra", '{"a": 1}'], "a checkpoint takes none"),
    ],
)
def test_wrong_options_are_explained(teacher, world, options, said):
    """An option would be ignored, or found wrong after hours."""
    (world / "d.jsonl").write_text('{"image": "a.png", "description": "Two dogs."}\n')
    result = run("answer-eval", "in.jsonl", "out.jsonl", "--images", "pictures", *options)
    assert result.exit_code == 2 and said in result.stderr and not teacher.bodies
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_a_teacher_the_variables_are_named(world):
    """Nobody would know where the teacher is looked for."""
    result = run("answer-eval", "in.jsonl", "out.jsonl")
    assert result.exit_code == 2 and "REVERSE_LLM_BASE_URL is not set" in result.stderr
    assert "--model" in result.stderr


@pytest.mark.parametrize("image", ["../in.jsonl", "/etc/passwd", "missing.png", "text.png"])
def test_a_bad_picture_is_one_failure(teacher, world, image):
    """A path from the data would send any file of the disk, or one broken picture end the run."""
    (world / "pictures" / "text.png").write_text("secret")
    write_drafts(world / "in.jsonl", [make_record(0, images=(image,)), make_record(1, images=("a.png",))])
    result = run("answer-eval", "in.jsonl", "out.jsonl", "--images", "pictures")
    assert result.exit_code == 0 and "1 records failed (1 picture)" in result.stderr
    assert [record.id for record in read_drafts("out.jsonl")] == ["q1"] and len(teacher.bodies) == 1
    assert json.loads((world / "out.jsonl.failures.jsonl").read_text())["reason"] == "picture"


def test_a_judge_decides_what_grading_cannot(teacher, world, chat_server, monkeypatch):
    """Answers that cannot be read would be right or wrong by chance, or clear ones be paid for twice."""
    teacher.respond = lambda handler, body: handler.give(
        "I would say" if number_of(body) < 3 else "Answer: 5"
    )
    verdicts = iter(['{"verdict": "right"}', '{"verdict": "maybe"}'])
    judge = chat_server(lambda handler, body: handler.give(next(verdicts, "Hm.")))
    monkeypatch.setenv("REVERSE_JUDGE_BASE_URL", judge.url)
    monkeypatch.setenv("REVERSE_JUDGE_MODEL", "j")
    result = run(
        "answer-eval",
        "in.jsonl",
        "out.jsonl",
        "--images",
        "pictures",
        "--judge",
        "endpoint",
        "--concurrency",
        1,
    )
    assert result.exit_code == 0, result.output
    assert "2 answers right, 2 wrong, 2 unknown" in result.stdout and len(judge.bodies) == 1 + 2 * 3
    drafts = [record.drafts[0] for record in read_drafts("out.jsonl")]
    assert sorted(draft.judged_by for draft in drafts) == ["", "", "grading", "grading", "grading", "judge:j"]


def test_extra_fields_reach_the_server(teacher):
    """Models that refuse a temperature could not be asked."""
    extra = '{"temperature": null, "max_tokens": null, "max_completion_tokens": 99}'
    assert run("answer-eval", "in.jsonl", "o.jsonl", "--images", "pictures", "--extra", extra).exit_code == 0
    assert all("temperature" not in body and "max_tokens" not in body for body in teacher.bodies)
    assert {body["max_completion_tokens"] for body in teacher.bodies} == {99}


@pytest.mark.parametrize("model", ["tiny-llava", "tiny-qwen"])
def test_a_checkpoint_answers_as_a_teacher(world, model):
    """Our own models could not be asked, would not see the picture, or answer otherwise the next time."""
    common = ("--model", model, "--images", "pictures", "--max-tokens", 12, "--concurrency", 2)
    result = run("answer-eval", "in.jsonl", "out.jsonl", *common, "--samples", 2, "--limit", 3)
    assert result.exit_code == 0, result.output
    made = list(read_drafts("out.jsonl"))
    assert len(made) == 3 and all(len(record.drafts) == 2 for record in made)
    assert any(draft.text for record in made for draft in record.drafts)
    again = run("answer-eval", "in.jsonl", "again.jsonl", *common, "--samples", 2, "--limit", 3)
    assert again.exit_code == 0
    assert (world / "again.jsonl").read_bytes() == (world / "out.jsonl").read_bytes()
    blind = run("answer-eval", "in.jsonl", "blind.jsonl", "--model", model, "--limit", 1)
    assert blind.exit_code == 2 and "--images names the folder" in blind.stderr


def answered(number):
    """Record `number`: a right answer for multiples of 3; its quality is number % 5 + 1."""
    right = number % 3 == 0
    return make_record(number, answered=number if right else number + 1, images=("a.png",))


def test_a_mix_is_rated_and_chosen(teacher, world):
    """Other shares would be chosen, badly reasoned answers be taken, or the choice differ each time."""

    def respond(handler, body):
        number = number_of(body)
        handler.give("fine" if number == 4 else json.dumps({"quality": number % 5 + 1}))

    teacher.respond = respond
    write_drafts(world / "in.jsonl", map(answered, range(60)))
    command = ("select-mix", "in.jsonl", "mix.jsonl", "--count", 20)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "20 records, 6 with a right answer, 14 with a wrong one" in result.stdout
    assert "1 records failed (1 garbage)" in result.stderr
    assert all(isinstance(body["messages"][1]["content"], str) for body in teacher.bodies)  # no --images
    made = list(read_drafts("mix.jsonl"))
    verdicts = [record.drafts[0].verdict for record in made]
    assert verdicts.count("right") == 6 and verdicts.count("wrong") == 14
    numbers = [int(record.id[1:]) for record in made]
    assert numbers == sorted(numbers) and 4 not in numbers
    assert min(number % 5 + 1 for number in numbers if number % 3 == 0) == 4
    before = (world / "mix.jsonl").read_bytes()
    assert run(*command).exit_code == 0 and (world / "mix.jsonl").read_bytes() == before
    result = run(*command, "--seed", 1)
    assert result.exit_code == 2 and "another" in result.stderr


def test_a_mix_without_a_judge(world):
    """Nothing could be chosen offline, or records without a verdict be chosen."""
    write_drafts(world / "in.jsonl", [*map(answered, range(30)), make_record(99)])
    result = run("select-mix", "in.jsonl", "mix.jsonl", "--no-judge", "--count", 100)
    assert result.exit_code == 0 and "29 records, 9 with a right answer, 20 with a wrong one" in result.stdout
    assert "--count 100 needs more: 10 right answers and 20 wrong ones" in result.stderr


def test_the_share_is_kept_at_any_size():
    """A set with few right answers would be filled with wrong ones."""
    rated = [{"id": str(n), "verdict": "right" if n < 7 else "wrong", "quality": 3} for n in range(1000)]
    for count in (1, 10, 20, 23, 24, 500):
        chosen = choose_mix(rated, MixPlan(count))
        right = sum(int(name) < 7 for name in chosen)
        assert abs(right - 0.3 * len(chosen)) <= 1 and len(chosen) == min(count, 23)
    assert choose_mix(rated, MixPlan(10)) != choose_mix(rated, MixPlan(10, seed=1))
    assert choose_mix(rated, MixPlan(10)) == choose_mix(rated[::-1], MixPlan(10))


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("cot100k", "<SUMMARY>s</SUMMARY><CAPTION> Two\ndogs. </CAPTION>", "Two\ndogs."),
        ("mulberry", "### Image Description:\nTwo dogs.\n\n### Rationales:\nx", "Two dogs."),
        ("mulberry", "### Image Description:\nTwo dogs.", "Two dogs."),
        (r"Caption: (.*)", "Caption: Two dogs.", "Two dogs."),
        (r"Two \w+", "I see Two dogs.", "Two dogs"),
        ("cot100k", "<CAPTION></CAPTION>", None),
    ],
)
def test_descriptions_are_found(pattern, text, found):
    """A teacher that reads no pictures would be told tags, or nothing."""
    assert DescriptionPattern(pattern).find(text) == found


def test_descriptions_are_written_once_for_each_record(world):
    """A record without a description would end the run, or a hostile expression hold it up for ever."""
    caption = RecordedDraft(text="<CAPTION>Two dogs.</CAPTION>" + "a" * 40 + "!")
    records = [
        make_record(0, images=("a.png",), drafts=(caption,)),
        make_record(1, images=("b.png",)),
        make_record(2, images=("a.png", "b.png"), drafts=(caption,)),
    ]
    write_drafts(world / "in.jsonl", records)
    result = run("image-description", "in.jsonl", "d.jsonl")
    assert result.exit_code == 0 and "1 descriptions of 3 records" in result.stdout
    assert json.loads((world / "d.jsonl").read_text()) == {"image": "a.png", "description": "Two dogs."}
    failed = [json.loads(line) for line in (world / "d.jsonl.failures.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in failed] == ["no_match", "2_pictures"]
    result = run("image-description", "in.jsonl", "e.jsonl", "--pattern", "(a|aa)+$", "--limit", 1)
    assert result.exit_code == 1
    assert json.loads((world / "e.jsonl.failures.jsonl").read_text())["reason"] == "timeout"
    with pytest.raises(RequestError, match="no regular expression"):
        DescriptionPattern("(")
