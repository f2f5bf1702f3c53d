"""Sets that hold pairs already, records without id, and records that are odd: none of them ends a run."""

import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.negatives import find_pairs, make_lexicon_negatives, read_turns
from reverse.data.negatives.negative_prompt import build_messages, read_reply
from reverse.data.records.published_set import read_records
from reverse.data.records.record_rules import check_shape
from reverse.data.records.schema import make_record
from reverse.data.scenes import make_scene, make_scene_records
from reverse.data.tagging import numbers
from reverse.data.tagging.tagger import tag_records
from reverse.endpoints.repeated_asking import build_retry
from reverse.tokens.spans import UN

DOG = "<SPAN>A dog</CN> sits <SPAN>on the grass</CN>."


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def write(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def record(name, answer, *more, image="a.png"):
    """One of several answers; without id where `name` is None."""
    made = make_record(name, image, "What is shown?", answer)
    for i, other in enumerate(more):
        made["conversations"] += make_record("", None, f"And what is {i}?", other)["conversations"]
    if name is None:
        del made["id"]
    return made


def pairs(records, seed=0):
    return [made for pair, _, _ in make_lexicon_negatives(records, seed) for made in pair]


@pytest.mark.parametrize("missing", ["left out", "null"])
def test_negatives_of_records_without_id_have_none(missing, tmp_path):
    """All of them would be called "-neg", as if they were of one record."""
    tagged = [record(None, DOG, DOG, image=f"{k}.png") for k in range(6)] + [record(None, "Nice.")]
    if missing == "null":
        tagged = [each | {"id": None} for each in tagged]
    result = run("negatives", write(tmp_path / "in.json", tagged), tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    made = list(read_records(tmp_path / "out.json"))
    assert len(made) == 13 and all(each.get("id") is None for each in made)
    assert [("id" in each) for each in made] == [missing == "null"] * 13
    assert [each["image"] for each in made[:12:2]] == [each["image"] for each in made[1:12:2]]
    [line] = (tmp_path / "out.json.failures.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == 6  # which one it is that got none


def test_the_name_of_a_negative_is_that_of_its_record():
    """The id true would become "True-neg", which no other reader takes for one of its record."""
    for name, of_negative in ((7, "7-neg"), (True, "true-neg"), ("x", "x-neg"), ("", "-neg")):
        assert {each["id"] for each in pairs([record(name, DOG)])} == {name, of_negative}


PAIRED = {
    "scenes": [made for k in range(4) for made in make_scene_records(make_scene("train", k))],
    "one answer": pairs([record(f"r{k}", DOG) for k in range(8)]),
    "several answers": pairs([record(f"r{k}", DOG, "It is nice.", DOG) for k in range(8)]),
    "without id": pairs([record(None, DOG, image=f"{k}.png") for k in range(8)]),
    "published": [each | {"id": each["id"][:2]} for each in pairs([record(f"r{k}", DOG) for k in range(8)])],
}


@pytest.mark.parametrize("shape", PAIRED)
def test_pairs_are_passed_on_as_they_are(shape, tmp_path):
    """A second negative, of the same name, would be made of every right answer that has one."""
    paired = Random(0).sample(PAIRED[shape], len(PAIRED[shape]))  # those of a pair need not stand together
    fresh = [record(f"new{k}", DOG, image=f"new{k}.png") for k in range(3)]
    result = run("negatives", write(tmp_path / "both.json", paired + fresh), tmp_path / "out.json")
    assert result.exit_code == 0 and "have their negatives already" in result.output
    made = list(read_records(tmp_path / "out.json"))
    assert made[: len(paired)] == paired and len(made) == len(paired) + 6
    counts = json.loads((tmp_path / "out.json.manifest.json").read_text())["counts"]
    wrong = sum(UN in turn["value"] for each in made for turn in each["conversations"])
    assert counts["negative_answers"] == wrong and counts["pairs"] == 3

    result = run("negatives", write(tmp_path / "paired.json", paired), tmp_path / "same.json")
    assert result.exit_code == 1 and "no negative was made" in result.output
    assert list(read_records(tmp_path / "same.json")) == paired


def test_a_wrong_answer_without_its_right_one_is_no_pair(tmp_path):
    """Records of other ids, pictures or questions would lose their negatives."""
    odd = record("a", f"<SPAN>A dog{UN}")
    others = [record("b", DOG), record("a", DOG, DOG), record(None, DOG), record("a-never", DOG)]
    found = find_pairs([odd, *others])
    assert [len(made) for made, _, _ in make_lexicon_negatives([odd, *others], pairs=found)] == [
        1,
        2,
        2,
        2,
        2,
    ]


@pytest.mark.parametrize("blank", [" ", "\n", "\u00a0\t", ""])
def test_a_phrase_of_blanks_is_malformed(blank, tmp_path):
    """One such phrase among a million would end the run with an IndexError that names no record."""
    blanks = [f"<SPAN>{blank}</CN>", f"<SPAN>{blank}</CN> and <SPAN>a dog</CN>", f"{DOG} <SPAN>{blank}</CN>"]
    tagged = [record(f"r{k}", answer) for k, answer in enumerate(blanks)] + [record("good", DOG)]
    result = run("negatives", write(tmp_path / "in.json", tagged), tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out.json.failures.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in lines] == [(f"r{k}", "malformed") for k in range(3)]
    assert {each["id"] for each in read_records(tmp_path / "out.json")} == {
        "r0", "r1", "r2", "good", "good-neg"
    }  # fmt: skip


@pytest.mark.parametrize(
    "phrase",
    ["9999999999999th", "9" * 5000 + "th", "1" + ",000" * 2000, "ſix", "fıve", "ſecond", "9" * 400 + "%"],
)
def test_no_number_is_too_odd(phrase):
    """A digit string read off a sign would fill the memory; a letter of old print would be a KeyError."""
    assert numbers.find_numbers(phrase)
    changed = numbers.change_number(phrase, Random(0))
    assert changed is None or changed != phrase


HALF = "\ud83d"  # of an emoji that was cut through, which JSON holds as an escape
PIECES = st.sampled_from(
    [
        *(
            "<SPAN>",
            "</CN>",
            "</UN>",
            "<SPAN>",
            "</CN>",
            "",
            " ",
            "\n",
            "\u00a0",
            "\u200b",
            "\x00",
            HALF,
            "a dog",
        ),
        *(
            "No",
            "yes,",
            "no dogs",
            "none",
            "two",
            "ſix",
            "0th",
            "99999999999999th",
            "24:00",
            "²",
            "5%",
            "the",
        ),
        *("中文", "(A)", "A. cat\nB. dog", "`x`", "$x^2$", "<image>", "<", "red or blue", "STOP", "who", "…"),
        *("a dog", "the", "-", "[0.5,0.5,0.5,0.5]"),
    ]
)
TEXTS = st.lists(PIECES, max_size=8).map("".join) | st.lists(PIECES, max_size=8).map(" ".join)
RECORDS = st.builds(
    lambda keys, answers: keys | {"conversations": [turn for pair in answers for turn in pair]},
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.sampled_from([None, 7, 0.5, True, [1], {"a": 1}, "", "x", "x-neg", HALF]),
            "image": st.sampled_from(["a.png", HALF]),
            "more": st.sampled_from([None, {"a": [float("inf")]}, 10**400, HALF]),
        },
    ),
    st.lists(
        st.tuples(
            st.builds(lambda text: {"from": "human", "value": text}, TEXTS),
            st.builds(
                lambda text, more: {"from": "gpt", "value": text} | more,
                TEXTS,
                st.sampled_from([{}, {"A_type": "x", "hint": ""}, {"hint": HALF}, {"key": [0]}]),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_no_record_ends_a_run(records):
    """One odd record of a million would end the run of a night with a traceback."""
    for tagged in (records, [tagged for tagged, _ in tag_records(records)]):
        assert len(tagged) == len(records)
        for found in (frozenset(), find_pairs(tagged)):
            for made, _, _ in make_lexicon_negatives(tagged, 0, found):
                for each in made:
                    check_shape(each)
        for turn in (turn for each in tagged for turn in read_turns(each)):
            for message in build_messages(turn, range(len(turn.answer.phrases))):
                message["content"].encode("utf-8")  # as it is sent


def test_a_reply_with_half_a_character_is_refused():
    """The run would end when the reply is sent back, or the set hold a text that no tokenizer takes."""
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        read_reply(json.dumps({"index": 1, "phrase": f"a cat {HALF}"}), [0])
    for message in build_retry(HALF, "it is not a JSON object"):
        message["content"].encode("utf-8")


@pytest.mark.parametrize("cut", [0, 1, 300, 1500, 4000])
def test_odd_records_and_pairs_go_on_to_the_same_bytes(cut, tmp_path):
    """A run that was killed would forget which records are paired, or write what cannot be read again."""
    plain = [record(f"r{k}", f"A dog {HALF if k == 3 else k} sits here.") for k in range(8)]
    plain += [record(None, " "), record(None, "It is nice.", "Yes", image=None), *PAIRED["scenes"][:12]]
    plain += [record("last", "Two cats")]
    for command, source in (("tag", write(tmp_path / "plain.json", plain)), ("negatives", "tagged.json")):
        whole = tmp_path / {"tag": "tagged.json", "negatives": "train.json"}[command]
        torn, part = tmp_path / f"torn-{whole.name}", tmp_path / f"torn-{whole.name}.part"
        assert run(command, tmp_path / source, whole).exit_code == 0
        stopped(command, tmp_path / source, torn)
        left = part.read_bytes()
        part.write_bytes(left[: len(left) - cut] if cut else left)
        assert run(command, tmp_path / source, torn).exit_code == 0
        assert torn.read_bytes() == whole.read_bytes()
        for kind in ("manifest.json", "failures.jsonl"):
            files = [tmp_path / f"{name.name}.{kind}" for name in (whole, torn)]
            assert files[0].exists() == files[1].exists()
            assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()
    names = Counter(each.get("id") for each in read_records(tmp_path / "train.json"))
    assert {name for name, times in names.items() if times > 1} == {None}


def stopped(command, source, out):
    """A run that is stopped when all is in its part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reverse.files.resumable_parts.PartFile.finish", lambda part: 1 / 0)
        result = run(command, source, out)
    assert result.exit_code == 1 and "ZeroDivisionError" in result.stderr
