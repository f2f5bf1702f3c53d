"""Published files become draft records and are written again as they were."""

import contextlib
import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.formats import FORMATS, find_format
from reverse.data.drafts.item_difference import find_difference, is_same, restore_item
from reverse.data.drafts.item_files import FileItem
from reverse.data.drafts.published_format import SkippedItems
from reverse.errors import DataError, RequestError
from tests.data.drafts.published_items import BEAM, ITEMS, THINK, TURNS, VCR, chat, user

CASES = [(name, number) for name, items in ITEMS.items() for number in range(len(items))]
WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\ud800 \n.:<>/#"), max_size=30
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


def parse(name, item, key="17"):
    layout = FORMATS[name].layout.kind
    return FORMATS[name].parse_item(FileItem(0, "item 0", item, key if layout == "map" else None))


def write_file(path, name, items):
    """A file in the layout of the format."""
    kind = FORMATS[name].layout.kind
    if kind == "map":
        content = {str(number): item for number, item in enumerate(items)}
    elif kind == "member":
        content = {"info": {"date": "today"}, "questions": items, "notes": [1]}
    else:
        content = items
    path.write_text(json.dumps(content))
    return content


def test_there_are_items_of_every_format():
    """A format could be added without being tested."""
    assert set(ITEMS) == set(FORMATS)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_an_item_comes_back_as_it_was(name, number):
    """A published file would be changed by being read, its types, keys or their order included."""
    item = ITEMS[name][number]
    (written,) = FORMATS[name].items(parse(name, item))
    assert json.dumps(written) == json.dumps(item)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_comes_back_through_draft_records(name, tmp_path):
    """What the records hold would not survive being saved, or a file's frame would be lost."""
    content = write_file(tmp_path / "in.json", name, ITEMS[name])
    assert write_drafts(tmp_path / "d.jsonl", FORMATS[name].read(tmp_path / "in.json")) == len(ITEMS[name])
    count = FORMATS[name].write(read_drafts(tmp_path / "d.jsonl"), tmp_path / "out.json")
    assert count == len(ITEMS[name])
    assert json.dumps(json.loads((tmp_path / "out.json").read_text())) == json.dumps(content)
    ids = [record.id for record in read_drafts(tmp_path / "d.jsonl")]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].layout.kind == "list"])
def test_lines_are_read_and_written_too(name, tmp_path):
    """Files that are published as JSON lines could not be read."""
    lines = "".join(json.dumps(item) + "\n" for item in ITEMS[name])
    (tmp_path / "in.jsonl").write_text(lines)
    FORMATS[name].write(FORMATS[name].read(tmp_path / "in.jsonl"), tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == ITEMS[name]


def places(value, at=()):
    """All places in a JSON value."""
    yield at
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*at, key))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_changed_items_come_back_or_are_refused(data):
    """An item of a shape that nobody thought of would end in a crash, or come back as another item."""
    name, number = data.draw(st.sampled_from(CASES))
    item = copy.deepcopy(ITEMS[name][number])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(sorted((p for p in places(item) if p), key=str)))
        holder = item
        for key in at[:-1]:
            holder = holder[key]
        what = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove":
            del holder[at[-1]]
        elif what == "replace" or isinstance(holder, list):
            same_type = WORDS if isinstance(holder[at[-1]], str) else VALUES
            holder[at[-1]] = data.draw(same_type)
        else:
            holder[data.draw(WORDS)] = data.draw(VALUES)
        if not item:
            return
    before = copy.deepcopy(item)
    try:
        record = parse(name, item)
    except (DataError, RequestError) as error:
        assert str(error)
        return
    (written,) = FORMATS[name].items(record)
    assert is_same(written, before)


@given(VALUES, VALUES)
def test_a_difference_makes_one_value_of_another(said, item):
    """An item would be written with something missing."""
    difference = json.loads(json.dumps(find_difference(said, item)))
    assert is_same(restore_item(said, difference), json.loads(json.dumps(item)))


@given(VALUES, VALUES, VALUES)
def test_a_difference_can_be_applied_to_anything(said, item, other):
    """A record that was changed in between could not be written."""
    restore_item(other, find_difference(said, item))


def test_a_changed_record_changes_its_item():
    """An answer that was graded again would be written with its old verdict."""
    record = parse("tsst-beam", BEAM)
    graded = record.drafts[0].model_copy(update={"verdict": "wrong", "text": "Step 1: No."})
    (item,) = FORMATS["tsst-beam"].items(
        record.model_copy(update={"drafts": (graded, *record.drafts[1:]), "images": ("b.png",)})
    )
    assert item["result"][0] == {"value": "Step 1: No.", "score": 0.91, "correct": False}
    assert item["image_path"] == "b.png" and item["result"][2]["value"] is None


def test_an_unjudged_chain_gets_a_verdict_when_it_is_known():
    """Verdicts on a beam file would not reach the file that is written of it."""
    beam = BEAM | {"result": [{"score": 0.5, "value": "A dog."}]}
    record = parse("tsst-beam", beam)
    assert record.drafts[0].verdict == "unknown"
    judged = record.drafts[0].model_copy(update={"verdict": "right"})
    (item,) = FORMATS["tsst-beam"].items(record.model_copy(update={"drafts": (judged,)}))
    assert item["result"] == [{"score": 0.5, "value": "A dog.", "correct": True}]


def test_what_the_records_hold():
    """A view would train on the wrong words, picture or verdict."""
    select = parse("r3v", ITEMS["r3v"][3])
    assert select.question == "How many?" and [draft.answer for draft in select.drafts] == [
        "2",
        "3",
        "3",
        "3",
    ]
    assert [draft.verdict for draft in select.drafts] == ["unknown", "right", "right", "right"]
    assert select.links[0].kind == "select" and select.links[0].drafts == (0, 1, 2)
    refine = parse("r3v", ITEMS["r3v"][2])
    assert refine.drafts[0].text == "Step 1: two.\nAnswer: 2" and refine.drafts[1].parent == 0
    misspelt, other = parse("r3v", ITEMS["r3v"][4]), parse("r3v", ITEMS["r3v"][5])
    assert misspelt.drafts[0].text == "It says 2." and misspelt.id == "refine-1"
    assert "conversations" not in other.source["difference"]["in"]
    assert [draft.verdict for draft in other.drafts] == ["unknown", "right", "right"]
    short = parse("r3v", ITEMS["r3v"][0])
    assert short.gold is not None and short.gold.kind == "number"
    staged = parse("llava-cot", ITEMS["llava-cot"][0])
    assert staged.drafts[0].answer == "3" and staged.drafts[0].role == "rationale"
    pair = parse("sco", ITEMS["sco"][0])
    assert (
        pair.drafts[1].verdict == "unknown" and pair.drafts[1].parent == 0 and pair.drafts[0].role == "first"
    )
    tagged = parse("srpo-sft", ITEMS["srpo-sft"][0])
    assert tagged.question == "How many?" and tagged.images == ("1.png",)
    assert [draft.role for draft in tagged.drafts] == ["first", "reflection", "correction"]
    assert [draft.verdict for draft in tagged.drafts] == ["wrong", "unknown", "right"]
    assert [draft.text for draft in tagged.drafts] == [
        "There are 2.\nAnswer: 2", "One dog is hidden.", "Answer: 3",
    ]  # fmt: skip
    prompt = parse("srpo-rl", ITEMS["srpo-rl"][0])
    assert prompt.images == ("a/1.png",) and prompt.question == "How many?"
    assert parse("aokvqa", ITEMS["aokvqa"][0]).images == ("train2017/000000299207.jpg",)
    assert parse("scienceqa", ITEMS["scienceqa"][0]).question == "It barks.\nWhich is it?\nA. cat\nB. dog"
    assert parse("tabmwp", ITEMS["tabmwp"][0]).images == ("tables/17.png",)
    vcr = parse("vcr", ITEMS["vcr"][0])
    assert vcr.question.startswith("What is person1 and person2 doing with cup3?\nA. person1's thirsty.")
    assert vcr.drafts[0].text == "A cup3 is full." and vcr.gold.answers == ("A",)


@pytest.mark.parametrize(
    ("answer", "standard", "verdict"),
    [
        ("3", "3", "right"), ("b", "B", "right"), ("A", "B", "wrong"), ("4", "5", "wrong"),
        ("5", "-5", "unknown"),  # the sign was lost
        ("AB", "B", "unknown"),  # letters of words around the answer
        ("", "B", "unknown"),
    ],
)  # fmt: skip
def test_mutilated_answers_of_srpo_are_not_wrong(answer, standard, verdict):
    """A right answer whose sign the published code dropped would be trained as an error."""
    item = {"query": "q", "image": "1.png", "standard_answer": standard, "cot": "c", "answer": answer}
    assert parse("srpo-answers", item).drafts[0].verdict == verdict


def test_a_failed_refinement_of_sco_is_no_draft():
    """An empty answer would be trained as a correction."""
    record = parse("sco-pairs", ITEMS["sco-pairs"][1])
    assert len(record.drafts) == 1


def test_a_line_that_was_appended_twice_gets_an_id_of_its_own(tmp_path):
    """A second run of the published search would make the file unreadable by id."""
    (tmp_path / "b.jsonl").write_text((json.dumps(BEAM) + "\n") * 3)
    records = list(FORMATS["tsst-beam"].read(tmp_path / "b.jsonl"))
    assert [record.id for record in records] == ["7", "7#2", "7#3"]
    assert [FORMATS["tsst-beam"].items(record) for record in records] == [[BEAM]] * 3


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("r3v", {"image": "../../etc/passwd"}, r"leaves the folder of pictures"),
        ("r3v", {"image": "a\\..\\..\\b.png"}, r"leaves the folder of pictures"),
        ("r3v", {"image": "/data/1.png"}, r"absolute path.*--root"),
        ("r3v", {"image": "C:\\1.png"}, r"absolute path"),
        ("r3v", {"image": "https://x.org/1.png"}, r"is an address"),
        ("r3v", {"image": 7}, r"named by a path, got 7"),
        ("r3v", {"conversations": []}, r"turn 0 of 'conversations'"),
        ("r3v", {"conversations": "hello"}, r"list of objects"),
        ("aokvqa", {"correct_choice_idx": 4}, r"'correct_choice_idx' must be a number from 0 to 3, got 4"),
        ("aokvqa", {"correct_choice_idx": True}, r"got True"),
        ("aokvqa", {"split": "../x"}, r"leaves the folder"),
        ("tsst-beam", {"answer_label": 0}, r"from 1 to 2, got 0"),
        ("tsst-beam", {"result": [{"value": 3}]}, r"must be a text or null"),
        ("tsst-value", {"value": "high"}, r"'value' must be a number"),
        ("vcr", {"question": [[9], "sleeps"]}, r"names object 9, but there are 3"),
        ("clevr-math", {"answer": "many"}, r"whole number"),
        ("srpo-sft", {"messages": chat("q", "a")}, "<think>"),
        ("chartqa", {"query": None}, r"'query' must be a text"),
        ("r3v", {"x": float("nan")}, r"NaN"),
        ("r3v", {"conversations": user("q" * 300_000, "a")}, "more than 200,000"),
        ("chartqa", {"query": "q" * 300_000}, "'query' has 300,000 characters"),
    ],
)  # fmt: skip
def test_bad_items_are_refused_with_the_reason(name, change, message):
    """A bad item would be trained, or a picture read from outside of its folder."""
    with pytest.raises((DataError, RequestError), match=f"(?s){message}"):
        parse(name, ITEMS[name][0] | change)


def test_a_root_is_taken_away_and_put_back():
    """Files with absolute paths, which the published code writes, could not be read."""
    item = ITEMS["r3v"][0] | {"image": "/data/charts/train/1.png"}
    record = FORMATS["r3v"].parse_item(FileItem(0, "item 0", item), root="/data/charts")
    assert record.images == ("train/1.png",)
    assert FORMATS["r3v"].items(record) == [item]


@pytest.mark.parametrize("layout", ["list", "lines"])
def test_bad_items_are_named_or_skipped_and_counted(layout, tmp_path):
    """One bad item would cost the whole file, or vanish without a word."""
    good = [json.dumps(item) for item in (BEAM, BEAM | {"data_id": "8"}, BEAM | {"data_id": "9"})]
    texts = [good[0], good[1][:-30], '{"data_id": 5}', good[2]]
    path = tmp_path / "b.json"
    path.write_text("\n".join(texts) if layout == "lines" else f"[{', '.join(texts)}]")
    with pytest.raises(DataError, match=r"b\.json, .*(line 2|item 1).*--skip-corrupt"):
        list(FORMATS["tsst-beam"].read(path))
    skipped = SkippedItems()
    records = list(FORMATS["tsst-beam"].read(path, skipped=skipped))
    assert [record.id for record in records] == ["7", "9"]
    assert skipped.count == len(skipped.listed) == 2


@pytest.mark.parametrize(
    ("text", "read", "reason"),
    [
        ('{"1": ITEM, "2": {"question": "x"}, "3": ITEM}', ["1", "3"], "must be a text"),
        ('{"1": ITEM, "1": ITEM}', ["1"], "twice"),
        ('{"1": ITEM, "2": {"question": ', ["1"], "what follows was not read"),
        ('{"1": ITEM, "2" ITEM}', ["1"], "a colon behind the key '2' is missing"),
        ('{"1": ITEM} {}', ["1"], "text follows the end of the object"),
        ("[1, 2]", [], "the beginning of an object is missing"),
        ("", [], "the file ends"),
    ],
)
def test_objects_of_items_that_are_damaged(text, read, reason, tmp_path):
    """A damaged file would be read in part without a word."""
    path = tmp_path / "problems.json"
    path.write_text(text.replace("ITEM", json.dumps(ITEMS["tabmwp"][0])))
    skipped = SkippedItems()
    assert [record.id for record in FORMATS["tabmwp"].read(path, skipped=skipped)] == read
    assert skipped.count == 1 and reason in skipped.listed[0]["reason"]


def test_a_large_object_is_read_in_pieces(tmp_path, monkeypatch):
    """A problem file of several windows would be cut at a window's end."""
    monkeypatch.setattr("reverse.files.json_window.CHUNK", 64)
    content = {str(n): ITEMS["tabmwp"][0] | {"question": f"ü{n}?"} for n in range(50)}
    (tmp_path / "p.json").write_text("\ufeff" + json.dumps(content, ensure_ascii=False, indent=1))
    assert [r.question for r in FORMATS["tabmwp"].read(tmp_path / "p.json")] == [f"ü{n}?" for n in range(50)]
    wrapped = {"info": {"a": 1}, "questions": [ITEMS["clevr-math"][0]] * 50, "tail": 2}
    (tmp_path / "c.json").write_text(json.dumps(wrapped))
    FORMATS["clevr-math"].write(FORMATS["clevr-math"].read(tmp_path / "c.json"), tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_text()) == wrapped


def test_a_message_that_is_no_json_is_the_question():
    """The published loader takes such a text as the question."""
    item = {"message": "How many?", "answer": "3"}
    assert parse("srpo-rl", item).question == "How many?"
    assert FORMATS["srpo-rl"].items(parse("srpo-rl", item)) == [item]
    assert json.loads(FORMATS["srpo-rl"].items(parse("srpo-rl", ITEMS["srpo-rl"][0]))[0]["message"]) == TURNS


def test_an_unknown_format_is_named():
    """The user would not learn which formats there are."""
    with pytest.raises(RequestError, match="there is no format 'r4v': choose one of r3v, "):
        find_format("r4v")


def repeat(text):
    return text * (190_000 // len(text))


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("srpo-sft", {"messages": chat("q", repeat(THINK + "<reflection></reflection>"))}),
        ("srpo-sft", {"messages": chat("q", repeat("<think>"))}),
        ("srpo-sft", {"messages": chat(repeat("<question>"), "<think>a</think><answer>b</answer>")}),
        ("srpo-sft", {"messages": chat("q", f"<think>a</think>{repeat(' ')}x")}),
        ("llava-cot", {"conversations": user("q", repeat("<CONCLUSION>"), "human", "gpt")}),
        ("llava-cot", {"conversations": user(repeat("<image>\n"), "a", "human", "gpt")}),
        ("mulberry", {"messages": chat("q", f"### The final answer is: a{repeat(' ')}b")}),
        ("mulberry", {"messages": chat("q", repeat("### The final answer is:\n"))}),
        ("r3v", {"conversations": user(repeat("\nModel's prediction 1:\n"), "x")}),
        ("r3v", {"conversations": user("q", repeat("1") + "x")}),
        ("r3v", {"conversations": user("q", repeat("Answer: "))}),
        ("chartqa", {"imgname": "1.png", "query": "q", "label": repeat("1") + "x"}),
        ("tsst-beam", BEAM | {"result": [{"value": repeat("A. "), "correct": True}]}),
        ("vcr", VCR | {"question": [repeat(" '")]}),
    ],
)  # fmt: skip
def test_hostile_texts_take_no_time(name, item):
    """A regular expression would read such a text once for each of its characters: for hours."""
    with contextlib.suppress(DataError, RequestError):
        record = parse(name, item)
        for each in FORMATS.values():
            each.items(record)
