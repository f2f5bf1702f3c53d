"""Tagging: what is marked, what is not, and that nothing else changes."""

import json
import sys
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reverse.data.records.record_rules import check_shape
from reverse.data.records.schema import make_record
from reverse.data.scenes import make_scene, make_scene_records
from reverse.data.tagging import yes_no_words
from reverse.data.tagging.answer_types import find_answer_type
from reverse.data.tagging.phrase_candidates import find_protected, is_skipped
from reverse.data.tagging.tagger import Tagger, tag_records
from reverse.tokens.spans import find_problems, parse_tags, remove_tags


@pytest.fixture(scope="module")
def tagger():
    return Tagger()


# Brackets stand for the tags. Written by hand; the second column is the question where it matters.
SENTENCES = [
    ("[Yes]", ""),
    ("[no]", ""),
    ("[Yes].", "Is it?"),
    ("[two]", "How many?"),
    ("[Two dogs].", ""),
    ("[Tom Hopkins]", "Who is the author?"),
    ("[red]", "What color?"),
    ("[black and white]", ""),
    ("[On the table]", "Where is it?"),
    ("[playing tennis]", "What is he doing?"),
    ("[12:45]", "What time is it?"),
    ("[$4.99]", "What is the price?"),
    ("[A]", "Which?\nA. cat\nB. dog"),
    ("[How to Be Great: 100 Recipes]", "What is the title of this book?"),
    ("[A dog] and [a cat]", ""),
    ("[No], there is [no dog].", ""),
    ("[Yes], [the man] is wearing [a blue hat].", ""),
    ("[A man] [in a red shirt] is riding [a bicycle] [on a beach] [near two dogs].", ""),
    ("There are [three baseball players] shown in the image .", ""),
    ("In this picture there are [two sheep].", ""),
    ("The image features [a woman] standing [on a sidewalk].", ""),
    ("The picture shows [a pair of skis] and [two pairs of scissors].", ""),
    ("[The umbrella] is [black and white], and it is [wooden].", ""),
    ("[On the left] there is [a dog].", ""),
    ("There is [nothing] [on the left].", ""),
    ("He is standing [in the middle of the room] [with his dog].", ""),
    ("[A large group of people] is gathered [in front of a church].", ""),
    ("It was built [in 1998] and cost [$5].", ""),
    ("[About 45% of them].", ""),
    ("She looks at him.", ""),
    ("What is this? Who are they?", ""),
    ("Run `a dog` now.", ""),
    ("See https://example.org/a/dog for it.", ""),
    ("[The formula] is $x^2 + y$.", ""),
    ("1. [A dog]\n2. [Two cats]", ""),
    ("**[A zebra]** and [three lions]!", ""),
    ("  [A cat]\n", ""),
    ("[Sí], hay dos perros en la imagen.", "¿Hay perros?"),
    ("[是的]，图中有三只狗。", ""),
    ("[Oui], il y a un chien.", ""),
    ("[Nein], das ist kein Hund.", ""),
    ("[はい]、そうです。", ""),
    ("There is [a zebra] and [two bananas].", ""),
    ("[The cat] is [next to the couch].", ""),
    ("```python\ndog = cat()\n```\n[A red dog] is running.", ""),
]


@pytest.mark.parametrize(("marked", "question"), SENTENCES)
def test_marks_what_a_reader_would(tagger, marked, question):
    """Without it: a key phrase is missed, cut short, or something without content is marked."""
    plain = marked.replace("[", "").replace("]", "")
    tagged = tagger.tag(plain, question)
    assert tagged.replace("<SPAN>", "[").replace("</CN>", "]") == marked


def test_a_box_is_one_phrase(tagger):
    """Without it: the four coordinates of a box become four phrases, and one of them alone is made wrong."""
    assert tagger.tag("[0.12, 0.3, 0.5, 0.9]") == "<SPAN>[0.12, 0.3, 0.5, 0.9]</CN>"


PIECES = (
    "A dog",
    "two red cups",
    " on the table",
    ", ",
    ". ",
    "\n",
    " ",
    "Yes",
    "no",
    "`x = a dog`",
    "$x^2$",
    "the image",
    "is",
    "there are",
    "https://a.org/dog",
    "```\ncode\n",
    "是的",
    "12.5%",
    "He",
    "its tail",
    "<b>",
    "</",
    "SPAN>",
    "<",
    "**",
    "1. ",
    "\u2028",
    "\u00a0",
    "é",
    "🐶",
    "in front of",
    "[0.1, 0.2, 0.3, 0.4]",
    "$5",
    "(",
    ")",
    "\t    ",
)
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.text(max_size=60))


@given(text=TEXTS)
@example(text="0\n0")
@example(text="two\ndogs")
@example(text="10\n%")
@settings(max_examples=150, deadline=None)
def test_taking_the_tags_out_gives_back_the_text(tagger, text):
    """Without it: a space or a letter is lost in training data, or phrases nest."""
    if remove_tags(text) != text:
        with pytest.raises(ValueError, match="already"):
            tagger.tag(text)
        return
    tagged = tagger.tag(text)
    assert remove_tags(tagged) == text
    assert find_problems(tagged) == []
    for phrase in parse_tags(tagged).phrases:
        assert phrase.text.strip() and "\n" not in phrase.text
        assert not any(start < phrase.end and phrase.start < end for start, end in find_protected(text))


@pytest.mark.parametrize(
    "phrase",
    [
        "the image",
        "in the picture",
        "This photo",
        "of the scene",
        "it",
        "which",
        "the",
        "this",
        "their",
        "those",
    ],
)
def test_skipped_kinds(phrase):
    """Without it: phrases without content are marked, and the model learns to doubt "the image"."""
    assert is_skipped(phrase)


@pytest.mark.parametrize("phrase", ["the picture frame", "a photographer", "his dog", "one dog", "no person"])
def test_kept_kinds(phrase):
    """Without it: the skip list swallows phrases that only begin like a skipped one."""
    assert not is_skipped(phrase)


@pytest.mark.parametrize(
    ("word", "question", "opposite"),
    [
        ("Yes", "Is it?", "No"),
        ("NO", "Is it?", "YES"),
        ("no", "¿Es un perro?", "sí"),
        ("Oui", "", "Non"),
        ("ja", "Ist das ein Hund?", "nein"),
        ("Ja", "Is er een hond op de foto?", "Nee"),
        ("нет", "", "да"),
        ("No", "C'è un cane nell'immagine?", "Sì"),
        ("いいえ", "", "はい"),
        ("不是", "", "是的"),
        ("لا", "", "نعم"),
        ("네", "", "아니요"),
        ("false", "", "true"),
        ("dog", "", None),
    ],
)
def test_yes_and_no_in_many_languages(word, question, opposite):
    """Without it: the negative of a Spanish "no" is an English "yes"."""
    assert yes_no_words.find_opposite(word, question) == opposite


def test_every_yes_is_found_and_flips_back():
    """Without it: a language's words are listed and never recognised."""
    for pairs in yes_no_words.PAIRS.values():
        for pair in pairs:
            for word in pair:
                assert yes_no_words.find_yes_no(f"{word}.") == (0, len(word))
                assert yes_no_words.find_yes_no(f"{word} dog") is None
                flipped = yes_no_words.find_opposite(word)
                assert (
                    flipped is not None
                    and flipped != word
                    and yes_no_words.find_opposite(flipped) is not None
                )


def test_records_keep_all_else(tagger):
    """Without it: pictures, questions or further keys are lost, or a tagged answer is tagged twice."""
    record = make_record("7", "a/b.jpg", "How many dogs are there?", "Two", "number") | {"source": "x"}
    record["conversations"] += [
        {"from": "human", "value": "Is it red?"},
        {"from": "gpt", "value": "<SPAN>Yes</CN>, it is red."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "In the park."},
    ]
    before = json.dumps(record)
    [(tagged, counts)] = tag_records([record])
    check_shape(tagged)
    assert json.dumps(record) == before
    assert tagged["source"] == "x" and tagged["image"] == "a/b.jpg"
    values = [turn["value"] for turn in tagged["conversations"]]
    assert values[1] == "<SPAN>Two</CN>" and values[3] == record["conversations"][3]["value"]
    assert values[5] == "<SPAN>In the park</CN>."
    assert [turn.get("A_type") for turn in tagged["conversations"][1::2]] == [
        "number",
        None,
        "general_answer",
    ]
    assert counts["already_tagged"] == 1 and counts["phrases"] == 2


@pytest.mark.parametrize(
    ("answer", "question", "kind"),
    [
        ("Yes, it is.", "Is it?", "yes_no"),
        ("Two", "How many?", "number"),
        ("12:30", "", "number"),
        ("There are three dogs.", "How many dogs are there?", "number"),
        ("A dog.", "What?", "general_answer"),
        ("B", "What?\nA. cat\nB. dog", "choice"),
        ("There are three dogs.", "What is there?", "general_answer"),
    ],
)
def test_answer_types(tagger, answer, question, kind):
    """Without it: a number is swapped for an animal, or hints go to the wrong answers."""
    assert find_answer_type(answer, question, parse_tags(tagger.tag(answer, question)).phrases) == kind


def test_workers_and_batches_change_nothing():
    """Without it: the same file tagged on another machine is another file."""
    plain = [record for i in range(6) for record in make_scene_records(make_scene("val", i), tagged=False)]
    alone = list(tag_records(plain, batch=5))
    assert [record["id"] for record, _ in alone] == [record["id"] for record in plain]
    assert list(tag_records(plain, batch=64)) == alone
    assert list(tag_records(plain, workers=2, batch=16)) == alone


def test_phrases_of_scenes_are_found():
    """Without it: tagging gets worse at what scenes know to be the key phrases, and nobody sees it.

    A phrase counts as found as it stands, or with the preposition before it ("with a cup").
    """
    seen: Counter[str] = Counter()
    for i in range(40):
        scene = make_scene("val", i)
        tagged = make_scene_records(scene, negatives=False)
        for truth, (made, _) in zip(
            tagged, tag_records(make_scene_records(scene, tagged=False)), strict=True
        ):
            found = {phrase.end: phrase for phrase in parse_tags(made["conversations"][1]["value"]).phrases}
            for phrase in parse_tags(truth["conversations"][1]["value"]).phrases:
                at = found.get(phrase.end)
                seen["all"] += 1
                seen["exact"] += at is not None and at.start == phrase.start
                seen["found"] += at is not None and at.text.endswith(phrase.text)
    assert seen["exact"] >= 0.97 * seen["all"]
    assert seen["found"] >= 0.99 * seen["all"]


def test_without_spacy_the_extra_is_named(monkeypatch):
    """Without it: a user without spaCy gets a ModuleNotFoundError and no idea what to install."""
    from reverse.data.tagging import tagger

    tagger._load_pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"reverse-vlm\[tag\]"):
        list(tag_records([]))
    tagger._load_pipeline.cache_clear()
