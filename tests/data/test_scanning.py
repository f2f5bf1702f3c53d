"""Taking JSON apart item by item: the same as json.load, in bounded memory, and on after what is broken."""

import io
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reverse.data.records.schema import make_record
from reverse.files import json_window
from reverse.files.json_scanning import Broken, JsonItem, place_after, scan

RECORDS = [
    make_record(str(i), f"coco/{i}.jpg", 'Was ist "das"? ]}, {"id": 0', f"A <SPAN>café {i}</CN> 😀\\ \n")
    for i in range(6)
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class Metered(io.BytesIO):
    """A stream that knows the largest read."""

    def __init__(self, data):
        super().__init__(data)
        self.largest = 0

    def read(self, size=-1):
        data = super().read(size)
        self.largest = max(self.largest, len(data))
        return data


def text_of(records):
    return [json.dumps(record, ensure_ascii=bool(k % 2)) for k, record in enumerate(records)]


def items(data):
    found = list(scan(io.BytesIO(data)))
    for one in found:
        if isinstance(one, JsonItem):  # the bytes named are those of the item
            assert data[one.offset : one.offset + len(one.raw)] == one.raw
            assert json.loads(one.raw) == one.value
    return found


def values(data):
    return [one.value for one in items(data) if isinstance(one, JsonItem)]


def broken(data):
    return [one for one in items(data) if isinstance(one, Broken)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(JSON, max_size=8),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.sampled_from([1, 5, 64, 1 << 20]),
)
@example([12, 3.5, -0.0, True, "", [], {}], None, True, 1)
def test_a_list_is_what_json_load_says(content, indent, ascii_only, chunk):
    """A value on the border of two reads would be torn: 12 read as 1 and 2."""
    data = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode()
    before, json_window.CHUNK = json_window.CHUNK, chunk
    try:
        found = items(data)
    finally:
        json_window.CHUNK = before
    assert [one.value for one in found] == content
    assert [one.number for one in found] == list(range(len(content)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_list_is_refused_where_json_load_refuses_it(data):
    """A comma too many or a bracket too few would be read as if nothing were."""
    text = json.dumps([{"a": [1, "x"]}, {"b": "é]"}, {"c": None}], ensure_ascii=False)
    raw = bytearray(text.encode())
    at = data.draw(st.integers(1, len(raw) - 1))
    change = data.draw(st.sampled_from(["drop", "cut", "insert"]))
    if change == "drop":
        del raw[at]
    elif change == "cut":
        del raw[at:]
    else:
        raw.insert(at, data.draw(st.sampled_from(list(b'[]{},:"\\x 1\n\xff'))))
    found = items(bytes(raw))
    try:
        expected = json.loads(bytes(raw).decode("utf-8"))
    except ValueError:
        assert any(isinstance(one, Broken) for one in found)
    else:
        assert [one.value for one in found] == expected


def test_memory_is_bounded_by_the_chunk(monkeypatch):
    """2 GB would stand in memory."""
    monkeypatch.setattr(json_window, "CHUNK", 4096)
    texts = [json.dumps(record) for record in RECORDS] * 2000
    for data in (f"[{','.join(texts)}]", "\n".join(texts)):
        stream = Metered(data.encode())
        seen, widest = 0, 0
        for item in scan(stream):
            seen += 1
            widest = max(widest, stream.tell() - item.offset)
        assert seen == len(texts)
        assert stream.largest <= 2 * 4096 and widest <= 4 * 4096


@pytest.mark.parametrize("chunk", [7, 300, 1 << 20])
@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        (lambda t: t.replace('"from"', '"from', 1), "delimiter"),  # a quote is missing
        (lambda t: t[:-1], "double quotes|delimiter|Expecting"),  # the closing bracket is
        (lambda t: t[:-2], "longer than|delimiter|double quotes"),  # two: the others would be its turns
        (lambda t: t[: len(t) // 2], "not valid JSON"),
        (lambda t: t.replace(": ", ":: ", 1), "Expecting value"),
        (lambda t: "garbage " + t[3:], "Expecting value"),
        (lambda t: t.replace("conver", "con\x01ver", 1), "control character"),
        (lambda t: "[" * 5000, "nested too deeply|Expecting"),
    ],
)
def test_what_follows_a_broken_record_is_read(hurt, words, chunk, monkeypatch):
    """One bad byte in the middle would cost the other half of the set."""
    monkeypatch.setattr(json_window, "CHUNK", chunk)
    monkeypatch.setattr(json_window, "LONGEST", 30_000)
    texts = text_of(RECORDS)
    begin = len(f"[{texts[0]}, {texts[1]}, ".encode())
    texts[2] = hurt(texts[2])
    data = f"[{', '.join(texts)}]".encode()
    found = broken(data)
    assert values(data) == RECORDS[:2] + RECORDS[3:]
    assert [(one.number, one.offset) for one in found] == [(2, begin)]
    assert re.search(words, found[0].reason)
    assert [one.number for one in items(data)] == list(range(6))


def test_two_broken_records_are_two():
    """The numbers of all that follow would be wrong."""
    texts = text_of(RECORDS)
    texts[2], texts[3] = texts[2][:-9], texts[3].replace('"gpt"', '"gpt')
    data = f"[{','.join(texts)}]".encode()
    assert [one.number for one in broken(data)] == [2, 3]
    assert values(data) == RECORDS[:2] + RECORDS[4:]


def test_bytes_that_are_not_utf8_cost_their_record_alone():
    """A Latin-1 letter in one record would make the file unreadable, or be replaced in silence."""
    texts = text_of(RECORDS)
    for data in (f"[{','.join(texts)}]".encode(), "\n".join(texts).encode()):
        data = data.replace("café 2".encode(), b"caf\xe9 2")
        assert values(data) == RECORDS[:2] + RECORDS[3:]
        assert len(broken(data)) == 1 and "utf-8" in broken(data)[0].reason.lower()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{}, {}", "was it cut off"),
        ("[", "was it cut off"),
        ("[{},]", "comma"),
        ("[{}] {}", "behind the list's end"),
        ("[{} {}]", "comma or the list's end"),
        ("[,{}]", "Expecting value"),
    ],
)
def test_faults_of_the_list_itself(text, words):
    """A file that was cut off between two records would pass as whole."""
    assert words in broken(text.encode())[-1].reason


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_file_cut_anywhere_is_told_once(chunk, monkeypatch):
    """Half a download would be trained on as if it were the set, or its one torn record counted as two."""
    monkeypatch.setattr(json_window, "CHUNK", chunk)
    data = f"[{', '.join(text_of(RECORDS[:2]))}]".encode()
    for end in range(1, len(data), 3):
        for cut in (data[:end], data[:end] + b" \r\n"):
            found = items(cut)
            assert [isinstance(one, Broken) for one in found] == [False] * (len(found) - 1) + [True]
            assert "cut off" in found[-1].reason or data[:end].rstrip().endswith(b"]")


@pytest.mark.parametrize("lines", [True, False])
def test_goes_on_from_any_place(lines, monkeypatch):
    """A resumed import would lose or repeat records."""
    monkeypatch.setattr(json_window, "CHUNK", 50)
    texts = text_of(RECORDS)
    data = ("\n\n".join(texts) if lines else f"[\n{' , '.join(texts)}\n]").encode()
    whole = items(data)
    for k, item in enumerate(whole):
        stream = io.BytesIO(data)
        place = place_after(item)
        stream.seek(place.offset)
        assert list(scan(stream, place)) == whole[k + 1 :]


def test_lines_and_marks():
    """A byte order mark or a blank line would be an error, or shift every number."""
    texts = text_of(RECORDS[:3])
    data = b"\xef\xbb\xbf\n " + f"{texts[0]}\r\n\n{{broken\n{texts[1]}\n{texts[2]}".encode()
    found = items(data)
    assert [one.line for one in found] == [2, 4, 5, 6] and [one.number for one in found] == [0, 1, 2, 3]
    assert isinstance(found[1], Broken) and values(data) == RECORDS[:3]
    assert values(b"\xef\xbb\xbf [" + texts[0].encode() + b"]") == RECORDS[:1]
    assert items(b"") == items(b" \n") == []


def test_a_line_without_end_is_passed_over(monkeypatch):
    """A binary file would be read into memory whole."""
    monkeypatch.setattr(json_window, "CHUNK", 64)
    monkeypatch.setattr(json_window, "LONGEST", 2000)
    data = (json.dumps(RECORDS[0]) + "\n" + "x" * 9000 + "\n" + json.dumps(RECORDS[1]) + "\n").encode()
    assert values(data) == RECORDS[:2]
    assert [(one.number, one.line, one.size) for one in broken(data)] == [(1, 2, 9000)]
