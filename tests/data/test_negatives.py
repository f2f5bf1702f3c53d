"""Negatives by rule and lexicon: wrong for sure, well written, balanced, the same however they are made."""

import json
import time
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.negatives import make_lexicon_negatives, make_negative, read_turns
from reverse.data.negatives.negative_filters import PhraseContext, find_rejection
from reverse.data.negatives.phrase_contents import OtherPhrases, PhraseCounts
from reverse.data.negatives.rule_negatives import PhraseSlot, find_replacements
from reverse.data.records.published_set import read_records
from reverse.data.records.record_rules import check_shape
from reverse.data.records.schema import make_record
from reverse.data.scenes import find_objects, make_scene, make_scene_records
from reverse.data.scenes.captions import PLACES, find_false_places, find_unique_object
from reverse.data.scenes.object_names import GROUPS
from reverse.data.scenes.themes import COLOURS
from reverse.data.tagging import numbers
from reverse.data.tagging.lexicon import load_lexicon
from reverse.data.tagging.tagger import tag_records
from reverse.files.resumable_parts import PartFile
from reverse.tokens.spans import CN, SPAN, UN, find_problems, parse_tags
from tests.warm_python import start_python

LEXICON = load_lexicon()


def negative_of(answer, question="Describe this image.", seed=0, **more):
    [turn] = read_turns(make_record("1", "a.png", question, answer) | more)
    return make_negative(turn, seed)


def said_instead(phrase, question="", before="", seeds=12):
    """Every first replacement of a phrase over some seeds."""
    slot = PhraseSlot(phrase, question, before)
    return {next(iter(find_replacements(slot, Random(seed))))[0] for seed in range(seeds)}


@pytest.mark.parametrize(
    ("phrase", "question", "allowed"),
    [
        ("Yes", "Is it red?", {"No"}),
        ("no", "Is it red?", {"yes"}),
        ("Sí", "¿Es rojo?", {"No"}),
        ("red", "Is it red or blue?", {"blue"}),
        ("blue", "Is it red or blue?", {"red"}),
        ("a dog", "Is that a cat or a dog?", {"a cat"}),
        ("B", "Which?\nA. a cat\nB. a dog\nC. a cow", {"A", "C"}),
        ("no dogs", "", {"two dogs", "three dogs", "several dogs"}),
        ("No person", "", {"A person"}),
        ("on the left", "", {"on the right"}),
        ("behind the house", "", {"in front of the house", "behind the church"}),
        ("a dozen", "", {"two dozen", "half a dozen", "three dozen"}),
    ],
)
def test_what_has_few_opposites(phrase, question, allowed):
    """Without it: a yes stays a yes, or a closed question gets an answer it did not offer."""
    said = said_instead(phrase, question)
    if phrase == "behind the house":
        assert all(text != phrase and text.split()[-1] and "the" in text for text in said)
    else:
        assert said <= allowed


@given(value=st.integers(0, 40), seed=st.integers(0, 999))
def test_counts_change_by_a_little_and_never_below_zero(value, seed):
    """Without it: minus one dog, the same number, or "two" for a hundred."""
    for said in (str(value), numbers.spell_number(value)):
        new = numbers.change_number(said, Random(seed))
        again = int(new) if said.isdigit() else sum(numbers.WORDS[part] for part in new.split("-"))
        assert again >= 0 and 1 <= abs(again - value) <= max(3, value // 10)


@given(
    text=st.sampled_from(
        (
            "10:25",
            "0:05",
            "23:59",
            "12:00 pm",
            "1998",
            "2024",
            "45%",
            "100%",
            "0.35",
            "$4.99",
            "2,500",
            "3rd",
            "First",
            "12/05/2010",
            "555-1234",
            "007",
            "98765",
            "None",
            "TWENTY-FIVE",
            "a dozen",
            "[0.12, 0.40, 0.5, 0.9]",
        )
    ),
    seed=st.integers(0, 999),
)
def test_other_numbers_stay_of_their_kind(text, seed):
    """Without it: a time of 25:10, a percentage above 100, an unchanged year."""
    new = numbers.change_number(text, Random(seed))
    assert new is not None and new != text and not new.startswith("-")
    assert numbers.is_number(new) and text.isupper() == new.isupper()
    if ":" in text:
        hours, minutes = new.split()[0].split(":")
        assert 0 <= int(hours) < 24 and 0 <= int(minutes) < 60
    if "%" in text:
        assert 0 <= int(new[:-1]) <= 100
    if text.startswith("["):
        left, top, right, bottom = map(float, new.strip("[]").split(","))
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


@pytest.mark.parametrize(
    ("phrase", "pattern"),
    [
        ("an apple", r"an? [a-z -]+"),
        ("A dog", r"An? [a-z -]+"),
        ("AN OVEN", r"AN? [A-Z -]+"),
        ("two knives", r"(?:two|three|four|five) [a-z -]+(?:s|mice|people)"),
        ("several people", r"several [a-z -]+"),
        ("in an old red car", r"in an? [a-z -]+"),
        ("a pair of skis", r"a pair of [a-z -]+s"),
        ("Nike", r"[A-Z][\w '-]+"),
    ],
)
def test_swaps_are_well_written(phrase, pattern):
    """Without it: "a apple", "two knife", "An dog": a model learns to spot bad grammar instead of errors."""
    import re

    for seed in range(30):
        for new in list(LEXICON.swap_words(phrase, Random(seed)))[:10]:
            assert re.fullmatch(pattern, new), new
            article = re.match(r"(?i)(an?) (\w)", new.removeprefix("in "))
            if article and not new.lower().startswith(("a u", "an u", "a one", "a eu")):
                assert (article[1].lower() == "an") == (article[2].lower() in "aeiou"), new


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("a dog", "a dog", "same"),
        ("a dog", "A Dog", "case_only"),
        ("a dog", "the dog", "article_or_pronoun"),
        ("his dog", "her dog", "article_or_pronoun"),
        ("a dog", "dogs", "plural_only"),
        ("two knives", "two knife", "plural_only"),
        ("a couch", "a sofa", "synonym"),
        ("a man", "a person", "synonym"),
        ("a dog", "a brown dog", "part_of"),
        ("a brown dog", "a dog", "part_of"),
        ("a dog", "a horse", "in_question"),
        ("a dog", "a bird", "in_answer"),
        ("a dog", "a bicycle", "in_answer"),
        ("black and white", "black and black", "repeated"),
        ("a dog", " ", "empty"),
        ("a dog", "a <SPAN>cat", "empty"),
        ("a dog", "a cat", None),
        ("on the left", "on the right", None),
        ("a red car", "a blue car", None),
    ],
)
def test_trivial_negatives_are_filtered(old, new, reason):
    """Without it: "a sofa" is taught as a wrong word for a couch, or a dog that is there as a wrong one."""
    others = OtherPhrases([PhraseCounts(["two birds", "a bike", "a white van on the right"])])
    context = PhraseContext("Is there a horse?", others)
    assert find_rejection(old, new, context) == reason


@pytest.mark.parametrize(
    "answer",
    [
        "There are <SPAN>three players</CN> shown <SPAN>in a field</CN> .",
        "<SPAN>A dog</CN> and <SPAN>a cat</CN> sit <SPAN>on a couch</CN>.",
        "  <SPAN>red</CN>\n",
    ],
)
def test_a_negative_is_the_answer_up_to_one_wrong_phrase(answer):
    """Without it: earlier phrases lose their tags, or text goes on after </UN>."""
    for seed in range(20):
        negative = negative_of(answer, seed=seed).negative
        old, new = parse_tags(answer), parse_tags(negative.value)
        assert negative.value.endswith(UN) and find_problems(negative.value) == []
        assert new.phrases[:-1] == old.phrases[: negative.at]
        assert new.phrases[-1].start == old.phrases[negative.at].start and not new.phrases[-1].confident
        assert new.text[: new.phrases[-1].start] == old.text[: new.phrases[-1].start]
        assert (
            negative.hint == new.phrases[-1].text.lower()
            and negative.hint != old.phrases[negative.at].text.lower()
        )


def test_no_negative_where_nothing_can_be_wrong_yet():
    """Without it: "On the right</UN>" is called wrong before it is said what stands there."""
    for seed in range(20):
        outcome = negative_of("<SPAN>On the left</CN> there is <SPAN>a dog</CN>.", seed=seed)
        assert outcome.negative.at == 1
    outcome = negative_of("<SPAN>The car</CN> is <SPAN>red</CN>.", "What colour is the car?")
    assert outcome.negative.at == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("It is nice.", "no_phrase"),
        ("<SPAN>A dog", "malformed"),
        ("<SPAN>A dog</UN>", "negative_already"),
        ("<SPAN>the zorblax</CN>", "nothing_to_swap"),
    ],
)
def test_why_there_is_none_is_said(answer, reason):
    """Without it: answers vanish from the training set and nobody knows why."""
    record = make_record("1", None, "What?", answer)
    [(records, counts, failures)] = make_lexicon_negatives([record])
    assert [turn["value"] for turn in records[0]["conversations"]] == ["What?", answer] and len(records) == 1
    assert counts[f"without_negative.{reason}"] == 1
    assert failures == [{"id": "1", "turn": 0, "reason": reason, "A_type": "general_answer"}]


def conversation(n, name="c"):
    record = make_record(name, "a.png", "What is 0?", f"{SPAN}a dog{CN}")
    for i in range(1, n):
        record["conversations"] += make_record("", None, f"What is {i}?", f"{SPAN}{i + 3}{CN}.")[
            "conversations"
        ]
    return record


def test_every_answer_is_right_once_and_wrong_once():
    """Without it: negatives pile up at one place of a conversation, or questions lose their answers."""
    first_wrong = 0
    for i in range(60):
        record = conversation(1 + i % 5, f"c{i}")
        [(records, counts, failures)] = make_lexicon_negatives([record], seed=1)
        assert not failures and len(records) == 2
        assert {made["id"] for made in records} == {f"c{i}", f"c{i}-neg"}
        for made in records:
            check_shape(made)
            asked = [turn["value"] for turn in made["conversations"][::2]]
            assert asked == [turn["value"] for turn in record["conversations"][::2]]
        for one, other in zip(*(made["conversations"][1::2] for made in records), strict=True):
            assert (UN in one["value"]) != (UN in other["value"])
            assert one["hint"] == other["hint"] and one["A_type"] == other["A_type"]
        wrong = [sum(UN in turn["value"] for turn in made["conversations"]) for made in records]
        assert abs(wrong[0] - wrong[1]) <= 1
        assert counts["positive_answers"] == counts["negative_answers"] == 1 + i % 5
        first_wrong += UN in records[0]["conversations"][1]["value"]
    assert 15 <= first_wrong <= 45


def test_neither_order_nor_neighbours_matter():
    """Without it: a resumed or sharded run makes other negatives than an unbroken one."""
    records = [conversation(1 + i % 4, f"c{i}") for i in range(12)]
    made = list(make_lexicon_negatives(records, seed=3))
    for i in reversed(range(12)):
        assert next(make_lexicon_negatives([records[i]], seed=3)) == made[i]
    assert list(make_lexicon_negatives(records, seed=4)) != made


# What the lexicon may put in place of something else and that scenes call by a COCO name.
ALSO = {
    "puppy": "dog",
    "kitten": "cat",
    "van": "truck",
    "child": "person",
    "woman": "person",
    "man": "person",
}


def is_true(phrase, before, question, scene):
    """Whether a phrase is true of a scene, by the scene alone; None where a reader could not tell."""
    low = phrase.lower()
    named = find_objects(low)
    if named:
        there = scene.truth.get(named[0].name, 0)
        return there == named[0].count or (named[0].count == 1 and there > 1)  # of two dogs, "a dog" is true
    for place, text in PLACES.items():
        if low == text:
            of = find_objects(before) or find_objects(question)
            thing = find_unique_object(scene, of[-1].name) if of else None
            return None if thing is None else place not in find_false_places(scene, thing)
    if low in COLOURS or "colour" in question:
        return low == scene.ground.colour
    for word, name in ALSO.items():
        if word in low.split() and name in scene.truth:
            return None
    for group, names in GROUPS.items():
        if group.rstrip("s") in low:
            return any(name in scene.truth for name in names)
    return False  # nothing else is ever drawn


def test_negatives_of_scenes_are_false():
    """Without it: a tenth of the "wrong" phrases may be true of the picture, and </UN> is noise."""
    verdicts = Counter()
    for i in range(60):
        scene = make_scene("val", i)
        for record, _ in tag_records(make_scene_records(scene, prejudice=0, tagged=False)):
            [turn] = read_turns(record)
            negative = make_negative(turn, 0).negative
            verdicts["made"] += negative is not None
            verdicts["answers"] += 1
            if negative is None:
                continue
            wrong = parse_tags(negative.value).phrases[-1]
            right = turn.answer.phrases[negative.at].text
            if turn.kind in ("yes_no", "number"):  # the true answer is known, so any other is false
                verdicts[right.lower() == wrong.text.lower()] += 1
                continue
            verdicts[is_true(wrong.text, turn.answer.text[: wrong.start], turn.question, scene)] += 1
    assert verdicts["made"] == verdicts["answers"]
    assert verdicts[False] >= 0.97 * verdicts["made"]
    assert verdicts[True] <= 0.01 * verdicts["made"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.json"
    records = [record for i in range(4) for record in make_scene_records(make_scene("val", i), tagged=False)]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_untagged_data_are_noticed(tmp_path, plain):
    """Without it: a set without one negative looks like a success, and is trained on."""
    result = run("data", "negatives", plain, tmp_path / "train.json")
    assert result.exit_code == 1 and "has a marked phrase: `reverse data tag`" in result.output


def test_commands_from_plain_to_training_data(tmp_path, plain):
    """Without it: the two commands do not fit together, or the manifest's numbers are not the file's."""
    assert run("data", "tag", plain, tmp_path / "tagged.jsonl").exit_code == 0
    result = run("data", "negatives", tmp_path / "tagged.jsonl", tmp_path / "train.json", "--seed", "2")
    assert result.exit_code == 0, result.output
    records = list(read_records(tmp_path / "train.json"))
    assert isinstance(json.loads((tmp_path / "train.json").read_text(encoding="utf-8")), list)
    counts = json.loads((tmp_path / "train.json.manifest.json").read_text())["counts"]
    wrong = sum(UN in turn["value"] for record in records for turn in record["conversations"])
    assert counts["negative_answers"] == wrong > 0 and counts["records_out"] == len(records)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.tmp"))
    again = run("data", "negatives", tmp_path / "tagged.jsonl", tmp_path / "train.json", "--seed", "2")
    assert again.exit_code == 0 and again.output == result.output
    other = run("data", "negatives", tmp_path / "tagged.jsonl", tmp_path / "train.json", "--seed", "3")
    assert other.exit_code == 2 and "seed" in other.output


def test_folders_of_the_outputs_are_made(tmp_path, plain):
    """A folder that nobody made would end both commands, though all others make theirs."""
    tagged, train = tmp_path / "new" / "tagged.jsonl", tmp_path / "another" / "deep" / "train.json"
    assert run("data", "tag", plain, tagged).exit_code == 0
    result = run("data", "negatives", tagged, train)
    assert result.exit_code == 0, result.output
    assert train.is_file() and tagged.with_name("tagged.jsonl.manifest.json").is_file()


@pytest.mark.parametrize("cut", [0, 1, 40, 2000, 9000])
def test_a_torn_part_goes_on_to_the_same_bytes(tmp_path, plain, cut):
    """Without it: a run that was killed in the middle of a line loses or repeats records."""
    run("data", "tag", plain, tmp_path / "tagged.jsonl")
    whole, torn = tmp_path / "whole.json", tmp_path / "torn.json"
    run("data", "negatives", tmp_path / "tagged.jsonl", whole)
    plan = json.loads((tmp_path / "whole.json.manifest.json").read_text())
    del plan["counts"], plan["sha256"]
    with PartFile(torn, plan) as part:
        for records, counts, failures in make_lexicon_negatives(read_records(tmp_path / "tagged.jsonl")):
            part.write(records, counts, failures)
    left = part.part.read_bytes()
    part.part.write_bytes(left[: len(left) - cut] if cut else left)
    assert run("data", "negatives", tmp_path / "tagged.jsonl", torn).exit_code == 0
    assert torn.read_bytes() == whole.read_bytes()
    manifests = [(tmp_path / f"{name}.json.manifest.json").read_text() for name in ("whole", "torn")]
    assert manifests[0] == manifests[1]


def test_a_killed_command_goes_on(tmp_path):
    """Without it: what was made before a SIGKILL is gone, or made twice."""
    source = tmp_path / "tagged.jsonl"
    with source.open("w", encoding="utf-8") as stream:
        for i in range(3000):
            stream.write(json.dumps(conversation(3, f"c{i}")) + "\n")
    out = tmp_path / "train.jsonl"
    process = start_python("-m", "reverse", "data", "negatives", source, out)
    part = tmp_path / "train.jsonl.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    done = part.read_bytes()
    assert not out.exists() and done.count(b"\n") < 3000
    assert run("data", "negatives", source, out).exit_code == 0
    names = [record["id"].removesuffix("-neg") for record in read_records(out)]
    assert names[::2] == names[1::2] == [f"c{i}" for i in range(3000)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tag", "missing.json", "out.json"), "no such file"),
        (("tag", "plain.json", "out.txt"), "must end in"),
        (("tag", "plain.json", "plain.json"), "is the input"),
        (("tag", "plain.json", "plain.json/out.json"), "plain.json is a file"),
        (("negatives", "plain.json", "out.json", "--by", "magic"), "lexicon or llm"),
        (("negatives", "plain.json", "there.json"), "there already"),
    ],
)
def test_wrong_input_is_explained(tmp_path, plain, monkeypatch, arguments, message):
    """Without it: a traceback, or a file that was there is overwritten."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("[]")
    result = run("data", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert (tmp_path / "there.json").read_text() == "[]"


def test_two_processes_do_not_share_a_part(tmp_path):
    """Without it: two runs started by mistake write into each other's file."""
    with PartFile(tmp_path / "out.json", {"seed": 0}), pytest.raises(ValueError, match="another process"):
        PartFile(tmp_path / "out.json", {"seed": 0})
