"""What `check` counts is what is there; the oracle counts in plain Python, one answer at a time."""

import json
import random
from collections import Counter

import pytest

from reverse.data.records.importer import import_records
from reverse.data.records.schema import make_record
from reverse.data.records.set_check import check_set, source_of
from reverse.data.scenes import write_scenes
from reverse.tokens.spans import find_problems

IMAGES = (
    "coco/train2017/1.jpg",
    "vg/VG_100K/2.jpg",
    "gqa/images/3.jpg",
    None,
    "flat.png",
    "./coco/train2017/4.jpg",
)
PIECES = ("<SPAN>", "</CN>", "</UN>", "a < b", "dog", " ", "<SP", "AN>", "</C", "N>", "\n", "é", "\ud83d")


def random_records(count, seed=0):
    rng = random.Random(seed)
    records = []
    for k in range(count):
        record = make_record(str(k), rng.choice(IMAGES), "What?", "")
        for _ in range(rng.randrange(3)):
            record["conversations"] += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": ""}]
        for turn in record["conversations"][1::2]:
            good = "".join(rng.choice(["<SPAN>a\ndog</CN> ", "so ", "<SPAN>é</CN>."]) for _ in range(3))
            wild = "".join(rng.choice(PIECES) for _ in range(6))
            blank = " \n"[: rng.randrange(3)]
            turn["value"] = rng.choice([good, good + "<SPAN>a cat</UN>", wild, wild, blank])
            turn["A_type"] = rng.choice(["general_answer", "yes/no", None])
            turn["hint"] = rng.choice([None, "", "a cat"])
        records.append(record)
    return records


def counted(records):
    """By source and by type, and the kinds of malformed tags."""
    sources, types, kinds = {}, {}, Counter()
    for record in records:
        source = sources.setdefault(source_of(record.get("image")), Counter())
        source["records"] += 1
        for turn in record["conversations"][1::2]:
            value = turn["value"]
            row = Counter(
                answers=1,
                confident=value.count("</CN>"),
                unconfident=value.count("</UN>"),
                negatives="</UN>" in value,
                hints=bool(turn.get("hint")),
            )
            source.update(row)
            types.setdefault(turn.get("A_type") or "(none)", Counter()).update(row)
            kinds.update(problem.kind for problem in find_problems(value))
            kinds["half_surrogate_pair"] += "\ud83d" in value
            kinds["empty_answer"] += not value.strip()
    return sources, types, kinds


@pytest.mark.parametrize("form", ["file", "imported"])
def test_counts_are_those_of_plain_python(form, tmp_path):
    """The quick look at good records would count otherwise than the tags' own parser."""
    records = random_records(600)
    path = tmp_path / "all.json"
    path.write_text(json.dumps(records))
    if form == "imported":
        import_records(path, tmp_path / "set")
        path = tmp_path / "set"
    report = check_set(path)
    sources, types, kinds = counted(records)
    assert report.sources == sources and report.types == types
    assert {kind: seen["count"] for kind, seen in report.malformed.items()} == kinds
    assert len(kinds) == 6 and all(kinds.values())  # every kind of tags', and two more
    for seen in report.malformed.values():
        assert len(seen["examples"]) <= 10
    for kind, seen in report.malformed.items():
        for example in seen["examples"]:
            said = records[example["index"]]["conversations"][1::2][example["turn"]]["value"]
            assert kind in counted([one(said)])[2]
    assert not report.ok and report.counts["records"] == 600
    json.dumps(report.to_dict())


def one(answer, question="What?", image=None, **changes):
    return make_record("1", image, question, answer) | changes


@pytest.mark.parametrize(
    ("record", "malformed", "notes"),
    [
        (one("<SPAN>a dog</CN> is <SPAN>it</UN>"), set(), set()),
        (one("<SPAN>a dog</UN> and so on"), set(), {"text_after_un"}),
        (one("<SPAN>a dog</UN> \n"), set(), set()),
        (one("a dog", question="A <SPAN>dog</CN>?"), {"tag_in_question"}, set()),
        (one(" \n\u3000"), {"empty_answer"}, set()),
        (one("a", question="\t"), {"empty_question"}, set()),
        (one("a", question="", image="a.png"), set(), set()),
        (one("a", question="<image> What?"), {"misplaced_image"}, set()),
        (one("a", question="<image>\nWhat?", image="a.png"), {"misplaced_image"}, set()),
        (one("An <image>", image="a.png"), {"image_in_answer"}, set()),
        (one("An <image>"), {"image_in_answer"}, set()),
        (one("a cut \ud83d"), {"half_surrogate_pair"}, set()),
        (one("a", question="\udc00?"), {"half_surrogate_pair"}, set()),
        (make_record("1", None, "What?", "a", hint="a \ud800"), {"half_surrogate_pair"}, set()),
        (one("<span>a dog</cn>"), {"near_tag"}, set()),
        (one("<SPAN>a dog</CN >"), {"near_tag", "never_closed"}, set()),
        (one("< SPAN>a dog< /un>"), {"near_tag"}, set()),
        (one("<span>in</span> <SPAN>a dog</CN> <span class='x'>"), set(), set()),
        (one("a") | {"image": "a.png"}, set(), {"picture_not_asked_about"}),
        (one("1 < 2 <b>bold</b> <SPAN>x > y</CN>"), set(), set()),
        (one("<SPAN>1 < 2</CN>"), set(), set()),
        (one("<SPAN> </CN>"), {"empty_phrase"}, set()),
        (one("A <SPAN>\u00a0\u2003\v</CN>."), {"empty_phrase"}, set()),
        (one("</CN>"), {"close_without_open"}, set()),
    ],
)
def test_what_is_wrong_and_what_is_unusual(record, malformed, notes, tmp_path):
    """A good set would be refused, or a broken one pass."""
    path = tmp_path / "all.json"
    path.write_text(json.dumps([one("yes"), record]))
    report = check_set(path)
    assert (set(report.malformed), set(report.notes)) == (malformed, notes)
    assert report.ok == (not malformed)
    for kind, seen in (report.malformed | report.notes).items():
        assert seen["count"] == 1 + (record["conversations"][1]["value"][:2] == "< " and kind == "near_tag")
        assert seen["examples"][0]["index"] == 1


def test_later_turns_are_looked_at(tmp_path):
    """A picture asked for in a later question stops training, and only first ones would be seen."""
    later = one("a", image="a.png")
    later["conversations"] += one("A <SPAN>dog</CN>", question="<image> And?")["conversations"]
    blank = one("a", image="a.png")
    blank["conversations"] += one("a", question=" ")["conversations"]
    path = tmp_path / "all.json"
    path.write_text(json.dumps([one("yes"), later, blank]))
    found = check_set(path).malformed
    places = {
        kind: (seen["examples"][0]["index"], seen["examples"][0]["turn"]) for kind, seen in found.items()
    }
    assert places == {"misplaced_image": (1, 1), "empty_question": (2, 1)}


def test_pictures_that_are_not_there(tmp_path):
    """Training would stop at the first of them, hours in."""
    (tmp_path / "root" / "coco").mkdir(parents=True)
    (tmp_path / "root" / "coco" / "1.jpg").write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    names = ["coco/1.jpg", "coco/2.jpg", "coco/2.jpg", "../secret.jpg", "/etc/passwd", "coco", None]
    records = [make_record(str(k), name, "What?", "A dog.") for k, name in enumerate(names)]
    path = tmp_path / "all.json"
    path.write_text(json.dumps(records))
    found = check_set(path, images=tmp_path / "root").pictures
    assert found["different"] == 5
    assert (found["missing"], found["missing_records"]) == (2, 3)
    assert found["missing_examples"][0] == {"index": 1, "image": "coco/2.jpg"}
    assert (found["refused"], found["refused_records"]) == (2, 2)
    assert check_set(path).pictures is None and check_set(path).ok
    with pytest.raises(ValueError, match="not a folder"):
        check_set(path, images=tmp_path / "gone")


def test_broken_records_are_counted(tmp_path):
    """One bad record would keep a set from being looked at."""
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join([json.dumps(one("a")), "{", json.dumps({"id": 1}), json.dumps(one("b"))]))
    report = check_set(path)
    assert (report.counts["records"], report.counts["broken"], report.ok) == (2, 2, False)
    assert [broken["index"] for broken in report.broken] == [1, 2]
    import_records(path, tmp_path / "set", skip_corrupt=True)
    report = check_set(tmp_path / "set")
    assert report.ok and report.counts["left_out"] == 2


def test_an_empty_set_is_not_a_good_one(tmp_path):
    """A download of no bytes would pass."""
    (tmp_path / "all.json").write_text("")
    assert not check_set(tmp_path / "all.json").ok


def test_token_lengths(tiny_llava, tmp_path):
    """The longest records would be cut in training without anybody having seen it coming."""
    tokenizer = tiny_llava[1].tokenizer
    records = [one("<SPAN>a dog</CN> " * k) for k in range(1, 101)]
    path = tmp_path / "all.json"
    path.write_text(json.dumps(records))
    said = ["\n".join(turn["value"] for turn in record["conversations"]) for record in records]
    lengths = sorted(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in said)
    found = check_set(path, tokenizer=tokenizer).tokens
    assert found["records"] == 100 and found["percentiles"]["100"] == lengths[-1]
    assert lengths[48] <= found["percentiles"]["50"] <= lengths[51]
    few = [check_set(path, tokenizer=tokenizer, token_sample=20, seed=seed).tokens for seed in (1, 1, 2)]
    assert few[0] == few[1] != few[2] and few[0]["records"] == 20


def test_scenes_are_a_good_set(tmp_path):
    """What the library itself writes would fail its own check."""
    write_scenes(tmp_path / "scenes", "test", 3)
    report = check_set(tmp_path / "scenes")
    assert report.ok and not report.notes
    assert report.pictures["different"] == 3 and set(report.sources) == {"images"}
