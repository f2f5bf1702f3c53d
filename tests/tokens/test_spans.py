"""Without these, a tag could reach the user's text, or a phrase's offsets could point beside the phrase."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverse.tokens.spans import (
    CN,
    SPAN,
    TAGS,
    UN,
    WELL_FORMED,
    TaggedPhrase,
    TokenIds,
    add_tags,
    find_problems,
    parse_tags,
    remove_tags,
)

# pieces of tags too: what is left when a tag is taken out may be a tag
PIECES = st.sampled_from(
    [*TAGS, "<SP", "AN>", "</C", "N>", "</U", "<", ">", "/", " ", ". ", "a dog", "é", "\n", "狗"]
)
TAGGED = st.lists(PIECES, max_size=30).map("".join)


@st.composite
def clean_and_phrases(draw):
    text = remove_tags(draw(TAGGED))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    phrases = [
        TaggedPhrase(text[start:end], start, end, draw(st.booleans()))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    return text, tuple(phrases)


@given(TAGGED)
def test_strip_leaves_no_tag_and_is_idempotent(text):
    """A tag hidden inside a tag must not come out of the first removal."""
    clean = remove_tags(text)
    assert not any(tag in clean for tag in TAGS)
    assert remove_tags(clean) == clean


@given(TAGGED)
def test_strip_is_plain_removal_repeated(text):
    """Any cleverness in `remove_tags` beyond deleting tags would change characters of the answer."""
    expected = text
    while any(tag in expected for tag in TAGS):
        for tag in TAGS:
            expected = expected.replace(tag, "")
    assert remove_tags(text) == expected


@given(TAGGED)
def test_parse_offsets_point_at_the_phrase(text):
    """Offsets in the tagged instead of the clean text would highlight the wrong words."""
    parsed = parse_tags(text)
    assert parsed.text == remove_tags(text)
    end = 0
    for phrase in parsed.phrases:
        assert end <= phrase.start <= phrase.end <= len(parsed.text)
        assert phrase.text == parsed.text[phrase.start : phrase.end]
        end = phrase.end


@given(clean_and_phrases())
def test_render_and_parse_round_trip(case):
    """Data that is parsed and written again would drift."""
    text, phrases = case
    tagged = add_tags(text, phrases)
    parsed = parse_tags(tagged)
    assert (parsed.text, parsed.phrases) == (text, phrases)
    assert add_tags(parsed.text, parsed.phrases) == tagged
    assert all(problem.kind == "empty_phrase" for problem in find_problems(tagged))


@given(st.lists(st.sampled_from([*TAGS, "a dog", " ", ".", "<", ">"]), max_size=20).map("".join))
def test_no_problems_means_parse_loses_nothing(text):
    """A malformed answer would count as well-formed, and its phrases be lost without a word."""
    malformed = [problem for problem in find_problems(text) if problem.kind != "empty_phrase"]
    parsed = parse_tags(text)
    assert (add_tags(parsed.text, parsed.phrases) == text) == (not malformed)
    assert all(text.startswith(TAGS, problem.offset) for problem in malformed)


def test_parse_reads_the_published_form():
    """The published data's own example must read as it is meant."""
    parsed = parse_tags(f"There are {SPAN}five soccer players{UN} {SPAN}in the image{CN} .")
    assert parsed.text == "There are five soccer players in the image ."
    assert parsed.phrases == (
        TaggedPhrase("five soccer players", 10, 29, False),
        TaggedPhrase("in the image", 30, 42, True),
    )


@pytest.mark.parametrize(
    ("tagged", "kinds"),
    [
        ("a dog", []),
        (f"{SPAN}a dog{CN}", []),
        (f"{SPAN}a {SPAN}dog{CN}", ["nested_open"]),
        (f"a dog{UN}", ["close_without_open"]),
        (f"{SPAN}a dog{CN}{CN}", ["close_without_open"]),
        (f"{SPAN}a dog", ["never_closed"]),
        (f"{SPAN}{CN}", ["empty_phrase"]),
        (f"{SPAN} {CN}", ["empty_phrase"]),
        (f"{SPAN}\n\u00a0\x85{UN}", ["empty_phrase"]),
        (f"{SPAN} a {CN}", []),
        ("<span>a dog</cn>", ["near_tag"]),
        (f"{SPAN}a dog</CN >", ["never_closed", "near_tag"]),
        ("<SPAN >a dog< / un\n>", ["near_tag", "near_tag"]),
        (f"<span>a</span> </SPAN> {SPAN}b{CN}", []),  # HTML
        (f"{UN}{SPAN}a{SPAN}", ["close_without_open", "nested_open", "never_closed"]),
    ],
)
def test_problems_are_named(tagged, kinds):
    """Malformed training data would pass unnoticed."""
    assert [problem.kind for problem in find_problems(tagged)] == kinds


@given(TAGGED)
def test_a_glance_passes_no_problem(text):
    """Malformed answers among millions would never be looked at."""
    if re.fullmatch(WELL_FORMED, text):
        assert not find_problems(text)


def test_blanks_are_all_that_strip_takes():
    """A phrase of some rarer blank would be well-formed at a glance and empty to `find_problems`."""
    for code in (*range(0xD800), *range(0xE000, 0x30000)):
        blank = re.fullmatch(WELL_FORMED, f"{SPAN}{chr(code)}{CN}") is None
        assert blank == (chr(code).isspace() or chr(code) == "<"), hex(code)


def test_parse_reads_a_phrase_of_blanks():
    """What a model writes is read as before: the phrase counts, and its probability is looked at."""
    assert parse_tags(f"a{SPAN} {CN}").phrases == (TaggedPhrase(" ", 1, 2, True),)


def test_problem_offset_counts_the_tagged_text():
    """An offset into another text would send the reader to the wrong place."""
    text = f"I see {SPAN}a dog{CN} and a cat{UN}"
    (problem,) = find_problems(text)
    assert text[problem.offset :] == UN
    assert str(problem.offset) in problem.message


@pytest.mark.parametrize(
    "phrases",
    [
        [TaggedPhrase("dog", 2, 5, True), TaggedPhrase("a", 0, 1, True)],  # out of order
        [TaggedPhrase("a dog", 0, 5, True), TaggedPhrase("dog", 2, 5, True)],  # overlap
        [TaggedPhrase("cat", 2, 5, True)],  # not what the text says
        [TaggedPhrase("dog", 2, 9, True)],  # beyond the end
    ],
)
def test_render_refuses_phrases_that_do_not_fit(phrases):
    """Wrong offsets would cut the text silently."""
    with pytest.raises(ValueError, match="phrase"):
        add_tags("a dog", phrases)


def test_render_refuses_text_with_tags():
    """Tags would nest."""
    with pytest.raises(ValueError, match="already contains a tag"):
        add_tags(f"{SPAN}a dog{CN}", [])


def test_token_ids_are_three():
    """Callers unpack the ids in this order."""
    ids = TokenIds(span=7, cn=8, un=9)
    assert tuple(ids) == (7, 8, 9)
    assert ids.closing == (8, 9)


def test_spans_need_no_torch():
    """The policy and the data tools would need a gigabyte of libraries to read a text."""
    code = (
        "import sys, reverse.tokens.spans, reverse.tokens; assert 'torch' not in sys.modules, 'torch came in'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
