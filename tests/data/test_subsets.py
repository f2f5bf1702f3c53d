"""Matched parts: the same ids in the same order, the records untouched, the same for the same seed."""

import hashlib
import json

import pytest

from reverse.data.negatives import make_lexicon_negatives
from reverse.data.records.importer import import_records
from reverse.data.records.schema import make_record
from reverse.data.records.subsets import manifest_path, subsample
from reverse.data.scenes import make_scene, make_scene_records
from reverse.tokens import remove_tags
from reverse.tokens.spans import UN


def write(path, records):
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def tagged_and_plain(count):
    """Ids repeat in both, as in the published sets; the order differs."""
    plain, tagged = [], []
    for k in range(count):
        for question in ("What?", "Where?")[: 1 + k % 2]:
            record = make_record(f"é{k}" if k % 5 else k, f"coco/{k}.jpg", question, f"a dog {k}")
            plain.append(record)
            marked = json.loads(json.dumps(record))
            marked["conversations"][0]["value"] = f"{question}\n<image>"
            marked["conversations"][1]["value"] = f"<SPAN>a dog {k}</CN>"
            tagged += [marked, marked | {"twice": 1.0}]
    return tagged[::-1], plain


@pytest.fixture
def files(tmp_path):
    tagged, plain = tagged_and_plain(60)
    return write(tmp_path / "tagged.json", tagged), write(tmp_path / "plain.json", plain)


@pytest.mark.parametrize("imported", [False, True])
def test_parts_have_the_same_ids(files, imported, tmp_path):
    """The comparison of tagged and plain training would be between different pictures."""
    tagged, plain = files
    all_tagged, all_plain = json.loads(tagged.read_text()), json.loads(plain.read_text())
    if imported:
        for name in ("tagged", "plain"):
            import_records(tmp_path / f"{name}.json", tmp_path / name)
        tagged, plain = tmp_path / "tagged", tmp_path / "plain"
    out, plain_out = tmp_path / "a" / "part.json", tmp_path / "a" / "plain.json"
    manifest = subsample(tagged, out, 40, seed=3, plain=plain, plain_out=plain_out)
    one, other = json.loads(out.read_text()), json.loads(plain_out.read_text())
    assert len(one) == len(other) == 40 == len({str(record["id"]) for record in one})
    for marked, bare in zip(one, other, strict=True):
        assert marked in all_tagged and bare in all_plain
        assert marked["id"] == bare["id"] and marked["image"] == bare["image"]
        texts = [record["conversations"] for record in (marked, bare)]
        assert texts[0][0]["value"].replace("<image>", "").strip() in texts[1][0]["value"]
        assert remove_tags(texts[0][1]["value"]) == texts[1][1]["value"]
    places = [all_tagged.index(record) for record in one]
    assert places == sorted(places)
    assert (manifest["same_questions"], manifest["other_questions"]) == (40, 0)
    for path in (out, plain_out):
        assert json.loads(manifest_path(path).read_text()) == manifest
    digests = {part["file"]: part["sha256"] for part in manifest["parts"]}
    assert digests["part.json"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert manifest["parts"][0]["source"]["records"] == len(all_tagged)


def tagged(count):
    """What `data tag` writes; every third record has two answers."""
    for k in range(count):
        record = make_record(f"é{k}" if k % 5 else k, f"{k}.jpg", "What?", f"<SPAN>a dog {k}</CN>.")
        if k % 3 == 0:
            record["conversations"] += make_record("", None, "How many?", "<SPAN>3</CN>")["conversations"]
        yield record


def without_tags(record):
    turns = [turn | {"value": remove_tags(turn["value"])} for turn in record["conversations"]]
    return record | {"conversations": turns}


@pytest.mark.parametrize("made_by", ["negatives", "scenes"])
def test_negatives_are_records_of_the_plain_id(made_by, tmp_path):
    """The part would be refused, or hold not one wrong answer, and the set be trained without them."""
    if made_by == "negatives":
        right = list(tagged(60))
        paired = [record for made, _, _ in make_lexicon_negatives(right) for record in made]
    else:
        scenes = [make_scene("train", k) for k in range(12)]
        right = [record for scene in scenes for record in make_scene_records(scene, negatives=False)]
        paired = [record for scene in scenes for record in make_scene_records(scene)]
    both = write(tmp_path / "paired.json", paired)
    plain = write(tmp_path / "plain.json", [without_tags(record) for record in right])
    n = len(right)
    out, plain_out = tmp_path / "part.json", tmp_path / "plain-part.json"
    manifest = subsample(both, out, n, plain=plain, plain_out=plain_out)
    one, other = json.loads(out.read_text()), json.loads(plain_out.read_text())
    names = [str(record["id"]).removesuffix("-neg") for record in one]
    assert names == [str(record["id"]) for record in other] and len(set(names)) == n
    assert all(record in paired for record in one)
    for record, bare in zip(one, other, strict=True):
        questions = [[turn["value"] for turn in each["conversations"][::2]] for each in (record, bare)]
        assert questions[0] == questions[1] and record["image"] == bare["image"]
    assert {key: manifest[key] for key in ("ids_only_tagged", "ids_only_plain", "same_questions")} == {
        "ids_only_tagged": 0, "ids_only_plain": 0, "same_questions": n
    }  # fmt: skip
    wrong = sum(UN in record["conversations"][1]["value"] for record in one)
    assert 0.25 * n < wrong < 0.75 * n
    assert manifest["neg_ids"] == sum(str(record["id"]).endswith("-neg") for record in one) > 0


def test_an_id_of_the_plain_set_that_ends_as_a_negatives(tmp_path):
    """The plain record `a-neg` would never be drawn, and its tagged record go with another picture."""
    plain = [make_record(name, None, "What?", "a dog") for name in ("a", "a-neg", "b")]
    marked = [
        make_record(name, None, "What?", "<SPAN>a dog</CN>")
        for name in ("a", "a-neg", "a-neg-neg", "b-neg", "c", "c-neg")
    ]
    files = write(tmp_path / "tagged.json", marked), tmp_path / "part.json", 3
    into = {"plain": write(tmp_path / "plain.json", plain), "plain_out": tmp_path / "plain-part.json"}
    with pytest.raises(ValueError, match="1 ids are not in the plain set, the first is 'c' of record 4"):
        subsample(*files, **into)
    manifest = subsample(*files, **into, allow_missing=True)
    assert [record["id"] for record in json.loads(into["plain_out"].read_text())] == ["a", "a-neg", "b"]
    drawn = [record["id"] for record in json.loads(files[1].read_text())]
    assert drawn[0] == "a" and drawn[1].startswith("a-neg") and drawn[2] == "b-neg"
    assert (manifest["ids_only_tagged"], manifest["ids_only_plain"]) == (1, 0)


def test_the_seed_decides(files, tmp_path):
    """The same 100k subset could not be had again."""
    parts = []
    for k, (seed, plain) in enumerate(
        [(0, files[1]), (0, files[1]), (1, files[1]), (0, None), (0, None), (1, None)]
    ):
        out, plain_out = tmp_path / f"{k}.json", tmp_path / f"{k}-plain.json"
        subsample(files[0], out, 30, seed=seed, plain=plain, plain_out=plain_out if plain else None)
        parts.append((out.read_bytes(), plain_out.read_bytes() if plain else None))
    assert parts[0] == parts[1] != parts[2] and parts[3] == parts[4] != parts[5]


def test_a_part_without_a_twin_is_any_records(files, tmp_path):
    """A draw by id would give the records of frequent ids too seldom."""
    everything = json.loads(files[0].read_text())
    subsample(files[0], tmp_path / "all.json", len(everything))
    assert json.loads((tmp_path / "all.json").read_text()) == everything
    assert (tmp_path / "all.json").read_text().startswith("[\n{")


def test_ids_that_one_lacks(files, tmp_path):
    """A tagged set of another version of the plain one would be matched in part, in silence."""
    tagged = json.loads(files[0].read_text())
    lacking = write(tmp_path / "lacking.json", tagged + [make_record("new", None, "a", "b")] * 2)
    arguments = (lacking, tmp_path / "a.json", 20)
    into = {"plain": files[1], "plain_out": tmp_path / "b.json"}
    with pytest.raises(ValueError, match=rf"1 ids.*'new' of record {len(tagged)}.*--allow-missing"):
        subsample(*arguments, **into)
    assert not (tmp_path / "a.json").exists() and not (tmp_path / "b.json").exists()
    manifest = subsample(*arguments, **into, allow_missing=True)
    assert (manifest["ids_only_tagged"], manifest["ids_only_plain"]) == (1, 0)
    assert "new" not in {record["id"] for record in json.loads((tmp_path / "a.json").read_text())}


def test_what_cannot_be_drawn_is_refused(files, tmp_path):
    """A part of the wrong size, or over a file of the user's, would be written."""
    out = tmp_path / "part.json"
    into = {"plain": files[1], "plain_out": tmp_path / "plain-part.json"}
    with pytest.raises(ValueError, match="at most 60, the different ids"):
        subsample(files[0], out, 61, **into)
    with pytest.raises(ValueError, match="at most 180, the records"):
        subsample(files[0], out, 181)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        subsample(files[0], out, 0)
    with pytest.raises(ValueError, match="both"):
        subsample(files[0], out, 5, plain=files[1], plain_out=out)
    with pytest.raises(ValueError, match="exists"):
        subsample(files[0], files[1], 5)
    nameless = write(tmp_path / "nameless.json", [{**make_record("", None, "a", "b"), "id": None}])
    with pytest.raises(ValueError, match=r"record 0 .* has no id"):
        subsample(nameless, out, 1, **into)
    assert not out.exists()
