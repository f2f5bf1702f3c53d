"""Text and JSON that users bring: encodings, sizes and depths, and errors that name file and line."""

import pytest

from reverse.files.text_reading import decode_text, parse_json, read_json, read_json_lines, read_text


@pytest.fixture
def write(tmp_path):
    def write_bytes(data: bytes, name: str = "file.json"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_bytes


def test_a_byte_order_mark_is_taken_off(write):
    """Files of Windows editors began with a character that JSON does not know."""
    path = write(b"\xef\xbb\xbf" + '{"name": "café"}\n'.encode())
    assert read_json(path) == {"name": "café"}
    assert read_text(path).startswith("{")
    assert list(read_json_lines(path)) == [(1, {"name": "café"})]
    assert parse_json("\ufeff[1]", "text") == [1]


@pytest.mark.parametrize("read", [read_text, read_json, lambda path: list(read_json_lines(path))])
def test_latin_1_names_file_line_and_remedy(write, read):
    """A bare UnicodeDecodeError named neither the file nor the line."""
    path = write(b'{"a": 1}\n{"a": "caf\xe9"}\n')
    if read is read_json:
        path = write(b'{"a": 1,\n"b": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"file\.json, line 2: byte 0xe9 is not UTF-8.*café.*save.*UTF-8"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named(write, encoding):
    """Windows shells write UTF-16; its zero bytes are valid UTF-8 and gave an error far from the cause."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    with pytest.raises(ValueError, match=r"file\.json, line 1: .*UTF-16.*save the file as UTF-8"):
        read_json(write((mark + '{"a": 1}').encode(encoding)))


def test_broken_json_names_line_and_column(write):
    """json's own error names no file."""
    with pytest.raises(ValueError, match=r"file\.json, line 2, column 6: not valid JSON .*near"):
        read_json(write(b'{"a": 1,\n"b": }'))
    with pytest.raises(ValueError, match=r"file\.json, line 3, column 7"):
        list(read_json_lines(write(b'{}\n\n{"a": }\n')))


def test_depth_is_bounded(write):
    """100,000 brackets are a RecursionError, 2,000 are none but break what copies or shows the value."""
    for depth in (3, 2_000, 100_000):
        with pytest.raises(ValueError, match=r"file\.json, from line 1 on: brackets .* more than 2 deep"):
            read_json(write(b"[" * depth + b"]" * depth), max_depth=2)
    assert read_json(write(b'[{"a": 1}, []]'), max_depth=2) == [{"a": 1}, []]


def test_size_is_bounded(write):
    """An endless or mistaken file is not read into memory."""
    path = write(b'["' + b"a" * 100 + b'"]\n')
    with pytest.raises(ValueError, match=r"file\.json is larger than 50 bytes"):
        read_json(path, max_bytes=50)
    with pytest.raises(ValueError, match=r"file\.json, line 1: longer than 50 bytes"):
        list(read_json_lines(path, max_line_bytes=50))
    assert read_json(path, max_bytes=105) == ["a" * 100]


def test_what_is_no_file_is_said(tmp_path):
    """A folder in place of a file was a bare IsADirectoryError."""
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_text(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is a folder"):
        read_json(tmp_path)


def test_a_number_of_too_many_digits_names_the_file(write):
    """Python refuses whole numbers beyond 4,300 digits, without naming the file."""
    with pytest.raises(ValueError, match=r"file\.json, from line 1 on: .*digits.*smaller number"):
        read_json(write(b"[" + b"1" * 5_000 + b"]"))


def test_messages_stay_short():
    """A line of a megabyte was shown whole."""
    with pytest.raises(ValueError) as error:
        parse_json('["' + "x" * 1_000_000 + '" y', "file")
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError) as error:
        decode_text(b"x" * 1_000_000 + b"\xff" * 1_000_000, "file")
    assert len(str(error.value)) < 400
