"""Limits on what costs more than it can be worth, and what is said where they are passed."""

import io
import json
from random import Random

from reverse.data.negatives import conversation_turns, make_lexicon_negatives
from reverse.data.records.schema import make_record
from reverse.data.tagging import numbers
from reverse.files import json_scanning
from reverse.files.json_scanning import Broken, JsonItem, scan
from reverse.tokens import spans


def test_a_file_of_short_items_is_not_scanned_to_its_end(monkeypatch):
    """A megabyte of `x` lines took four seconds, and gave half a million faults."""
    monkeypatch.setattr(json_scanning, "MAX_SHORT_ITEMS", 5)
    for text in (b"x\n" * 50, b"{}\n" * 50, b"[" + b"1, " * 50 + b"1]"):
        *before, last = scan(io.BytesIO(text))
        assert len(before) == 5 and isinstance(last, Broken) and "too short to be records" in last.reason
        assert last.offset + last.size == len(text)
    record = json.dumps({"conversations": ["x" * 40]}).encode() + b"\n"
    found = list(scan(io.BytesIO((record + b"{}\n") * 50)))  # no more short ones than others
    assert len(found) == 100 and all(isinstance(item, JsonItem) for item in found)


def test_errors_of_lines_read_as_those_of_json():
    """Messages are put together without json's errors, and must not say anything else."""
    rng = Random(0)
    pieces = [*'{}[]",:019.-e x', "true", "\ufeff", '"a"', '{"a": 1}', "NaN", "\\"]
    for _ in range(3000):
        line = "".join(rng.choices(pieces, k=rng.randrange(1, 6))).strip(" ")
        if not line:
            continue
        [found] = scan(io.BytesIO(b"\n" + line.encode())) if line[0] != "[" else [None]
        try:
            value = json.loads(line)
        except ValueError as error:
            assert found is None or f"({error})" in found.reason
        else:
            assert found is None or repr(found.value) == repr(value)


def test_records_that_are_too_long_get_no_negative_and_say_so(monkeypatch):
    """A record of 20,000 turns took ten seconds."""
    monkeypatch.setattr(conversation_turns, "MAX_RECORD", 18)
    [(made, counts, failures)] = make_lexicon_negatives([make_record("x", None, "Q?", "<SPAN>A dog</CN>.")])
    assert len(made) == 1 and made[0]["conversations"][1]["value"] == "<SPAN>A dog</CN>."
    assert failures[0]["reason"] == "record_too_long"
    assert counts["without_negative.record_too_long"] == 1


def test_numbers_are_found_wherever_they_begin():
    """What a number begins with is looked for first: what is forgotten there would never be found."""
    for text, kind in {
        "a dozen": "dozen", "A couple": "dozen", "half a dozen": "dozen", "[ 0.1, .2, 0.3, .4 ]": "box",
        ".5": "decimal", "ſix": "word", "Eleventh": "ordinal_word", "none": "nothing", "10:25": "time",
        **dict.fromkeys(numbers.ONES + numbers.TENS, "word"),
        **dict.fromkeys(numbers.ORDINALS, "ordinal_word"),
    }.items():  # fmt: skip
        assert numbers.find_numbers(f"[a] ({text})") == [(5, 5 + len(text), kind)]


def test_nested_tags_are_taken_out_one_by_one():
    """Tags inside others take another way through the text than those beside one another."""
    assert spans.parse_tags("a<SP</CN>AN>b</C</UN>N>").text == "ab"
    parsed = spans.parse_tags("a <SP</CN>AN>dog</C</UN>N>.")
    assert parsed.text == "a dog." and parsed.phrases == (spans.TaggedPhrase("dog", 2, 5, False),)
    assert spans.parse_tags("<SP" * 50 + "AN>" * 50).text == ""
