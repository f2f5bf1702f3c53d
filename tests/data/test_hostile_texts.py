"""A megabyte of anything is worked through in steps that grow with it, or refused by a limit that is said."""

import io
import json
from itertools import pairwise
from random import Random

import pytest

from reverse.data.negatives import conversation_turns, make_lexicon_negatives, read_turns
from reverse.data.negatives.negative_filters import PhraseContext, find_rejection
from reverse.data.negatives.phrase_contents import OtherPhrases, PhraseCounts
from reverse.data.records.published_set import read_records
from reverse.data.records.schema import make_record
from reverse.data.records.set_check import check_set
from reverse.data.records.subsets import subsample
from reverse.data.tagging import yes_no_words
from reverse.data.tagging.lexicon import Lexicon
from reverse.data.tagging.numbers import find_numbers
from reverse.data.tagging.phrase_candidates import SpanIndex, find_protected, mask_parts
from reverse.files import json_scanning, json_window
from reverse.files.json_scanning import Broken, scan
from reverse.files.text_reading import MAX_DEPTH


@pytest.mark.parametrize(
    "unit",
    ['{"id":[[1,1,1,1,1,1],', '{"id":{"a\\[ ":', '{"id":1 ', '{"a":["aaaa","b",', "[", '{"a":', '{"id":"a'],
)
def test_recovery_goes_over_a_text_a_bounded_number_of_times(unit, monkeypatch):
    """Each of thousands of broken records was decoded to the end of the file, again and again."""
    gone_over = [0]
    decode = json_window._decode

    def counted(text, at):
        try:
            value, end = decode(text, at)
        except json.JSONDecodeError as error:
            gone_over[0] += len(text) if error.msg.startswith("Unterminated") else error.pos
            raise
        gone_over[0] += end
        return value, end

    monkeypatch.setattr(json_window, "_decode", counted)
    monkeypatch.setattr(json_scanning, "FREE_EFFORT", 1 << 18)
    text = ("[" + unit * (60_000 // len(unit))).encode()
    items = list(scan(io.BytesIO(text)))
    assert all(isinstance(item, Broken) for item in items)
    assert sum(item.size for item in items) + 1 >= len(text) - items[0].offset
    assert gone_over[0] < 3 * (json_scanning.FREE_EFFORT + json_scanning.EFFORT * len(text))


def test_what_is_not_searched_is_said():
    """The rest of a file would be passed over without a word."""
    text = ("[" + '{"id":[[1,1,1,1,1,1],' * 50_000).encode()
    last = list(scan(io.BytesIO(text)))[-1]
    assert "was not searched for records: mend the file from here" in last.reason
    assert last.offset + last.size == len(text)


def test_records_behind_many_broken_ones_are_found():
    """A bound on effort must not cost the good records of a file with some broken ones."""
    good = json.dumps(make_record("good", None, "Q?", "A " + "long " * 200))
    text = "[" + ",".join([good, good[:-9], good] * 400) + "]"
    items = list(scan(io.BytesIO(text.encode())))
    assert sum(not isinstance(item, Broken) for item in items) >= 790


@pytest.mark.parametrize("form", ["list", "lines"])
def test_deep_items_are_no_records(form, tmp_path):
    """A value that json reads breaks what copies or shows it: a RecursionError that names no record."""
    deep = '{"id": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}"
    fine = json.dumps(make_record("x", None, "Q?", "[" * 200))
    text = f"[{fine},{deep},{fine}]" if form == "list" else f"{fine}\n{deep}\n{fine}"
    kinds = [isinstance(item, Broken) for item in scan(io.BytesIO(text.encode()))]
    assert kinds == [False, True, False]
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json, (item 1|line 2) .*nested more than 64 deep"):
        list(read_records(tmp_path / "r.json"))


def test_marks_and_encodings_of_records(tmp_path):
    """A file of a Windows editor, and one that is not UTF-8: place and remedy."""
    record = make_record("x", None, "Q?", "Café.")
    path = tmp_path / "r.jsonl"
    for text in (json.dumps([record], ensure_ascii=False), json.dumps(record, ensure_ascii=False)):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert list(read_records(path)) == [record]
        path.write_bytes(b"\n" + text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"r\.jsonl, (item 0|line 2) .*not UTF-8"):
            list(read_records(path))


@pytest.mark.parametrize(
    "unit", ["a", "a.", "a-", "\\[", "\\(", "$a=", "1. \n", "- x\n", "`x` ", "http://", "<a", "@"]
)
def test_protected_parts_of_long_texts(unit):
    """An answer of 100 kB held up the tagging of a set for minutes."""
    text = unit * (100_000 // len(unit))
    parts = find_protected(text)
    assert len(mask_parts(text, parts)) == len(text)
    assert all(a[1] <= b[0] for a, b in pairwise(parts))


def test_formulas_and_addresses_are_still_protected():
    """A pattern that takes one pass may miss what it is for."""
    text = r"See a.b+c@d.org, $x_1 = 2$, $5 or $6, \(a\) and \[b \frac{c}{d}\]."
    found = [text[a:b] for a, b in find_protected(text)]
    assert found == ["a.b+c@d.org", "$x_1 = 2$", r"\(a\)", r"\[b \frac{c}{d}\]"]
    assert SpanIndex([(2, 4), (6, 9)]).overlaps(3, 5) and not SpanIndex([(2, 4), (6, 9)]).overlaps(4, 6)


def test_numbers_and_answers_of_long_texts():
    """Each sign was tried as the beginning of thirteen kinds of number."""
    assert find_numbers("$" * 300_000 + " 45") == [(300_001, 300_003, "integer")]
    assert yes_no_words.find_yes_no(" " * 300_000) is None and yes_no_words.find_yes_no(
        '  "No", it is not'
    ) == (3, 5)


def long_record(count):
    turns = [
        text
        for k in range(count)
        for text in (f"What is {k}?", f"<SPAN>A dog</CN> and <SPAN>cup {k}</CN> <SPAN>on a red table</CN>.")
    ]
    return {
        "id": "x",
        "conversations": [{"from": ("human", "gpt")[k % 2], "value": t} for k, t in enumerate(turns)],
    }


def test_negatives_of_many_turns_look_at_each_phrase_once(monkeypatch):
    """Every answer was compared with every phrase of every other: a record of 2,000 turns took minutes."""
    looked = [0]
    look = Lexicon.find_words

    def counted(self, phrase, question=""):
        looked[0] += 1
        return look(self, phrase, question)

    monkeypatch.setattr(Lexicon, "find_words", counted)
    [(made, counts, _)] = make_lexicon_negatives([long_record(150)])
    assert len(made) == 2 and counts["hints"] > 100
    assert looked[0] < 150 * 60


def test_what_is_told_elsewhere_is_known_from_counts():
    """What an answer says itself, or no other answer does, would count as said elsewhere."""
    rng = Random(0)
    record = long_record(6)
    record["conversations"][3]["value"] = "<SPAN>A dog</CN> and <SPAN>a horse</UN>"
    made = read_turns(record)
    words = ["dog", "puppy", "cat", "horse", "cup", "mug", "table", "desk", "red table", "cup 2", "cup 3"]
    for turn in made:
        for phrase in turn.answer.phrases:
            said = [
                p.text for other in made if other is not turn for p in other.answer.phrases if p.confident
            ]
            said += [p.text for p in turn.answer.phrases if p is not phrase]
            for word in rng.sample(words, 6):
                plain = find_rejection(
                    "a bird", f"a {word}", PhraseContext(turn.question, OtherPhrases([PhraseCounts(said)]))
                )
                assert find_rejection("a bird", f"a {word}", turn.make_context(phrase)) == plain


def test_long_texts_get_no_negative_and_say_so(monkeypatch):
    """A question of a megabyte was searched once for every phrase of its answer."""
    long = make_record("x", None, "Q " * conversation_turns.MAX_TEXT, "<SPAN>A dog</CN>.")
    [(made, counts, failures)] = make_lexicon_negatives([long])
    assert made[0]["conversations"][1]["value"] == "<SPAN>A dog</CN>." and len(made) == 1
    assert failures[0]["reason"] == "too_long" and counts["without_negative.too_long"] == 1
    phrase = make_record("x", None, "Q?", f"<SPAN>{'a dog and ' * 60}</CN> by <SPAN>a red car</CN>.")
    [(made, counts, _)] = make_lexicon_negatives([phrase])
    assert counts["hints"] == 1 and "a dog and" not in made[-1]["conversations"][1]["hint"]


def test_ids_of_any_kind_match(tmp_path):
    """Numbers in one file and texts in the other were different records; 2**70 did not fit."""
    ids = [7, "img42", 2**70, "007", -1, 1.5]
    for name, kind in (("tagged", lambda value: value), ("plain", str)):
        records = [make_record(kind(value), None, f"Q {value}?", "A.") for value in ids]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    out, plain_out = tmp_path / "out.json", tmp_path / "plain_out.json"
    manifest = subsample(
        tmp_path / "tagged.json", out, len(ids), plain=tmp_path / "plain.json", plain_out=plain_out
    )
    assert manifest["same_questions"] == len(ids) and manifest["ids_only_tagged"] == 0
    assert [record["id"] for record in read_records(out)] == ids
    assert [record["id"] for record in read_records(plain_out)] == [str(value) for value in ids]


def test_a_report_stays_short_and_counts_tokens_of_odd_texts(tiny_llava, tmp_path):
    """Half a surrogate pair in the sample ended the check in the tokenizer; long names filled the report."""
    odd = make_record("a" * 9000, "b" * 3000 + "/1.png", "Q \ud83d?", "A dog.", answer_type="c" * 9000)
    (tmp_path / "r.json").write_text(json.dumps([odd]))
    report = check_set(tmp_path / "r.json", tokenizer=tiny_llava[1].tokenizer)
    assert report.tokens["records"] == 1 and report.malformed["half_surrogate_pair"]["count"] == 1
    assert len(json.dumps(report.to_dict())) < 2500
