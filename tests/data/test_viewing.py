"""What is shown is what is there, and nothing in a record can break out of where it is shown."""

import base64
import io
import json
from html.parser import HTMLParser

import pytest
from PIL import Image
from rich.console import Console

from reverse.data.records.published_set import open_records
from reverse.data.records.schema import make_record
from reverse.data.records.viewer import choose_records, show_records, write_page

EVIL = '<script>alert("1")</script> & <img src=x onerror=alert(1)> \x1b[2J\x07'


@pytest.fixture
def records(tmp_path, picture):
    picture(size=(900, 600)).save(tmp_path / "big.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    all_records = [
        make_record("a", "big.png", "What?", "I see <SPAN>a dog</CN> and <SPAN>a cat</UN>", hint="a bus"),
        make_record(EVIL, None, EVIL, f"<SPAN>{EVIL}</CN>{EVIL}"),
        make_record("c", "../secret.png", "What?", "</CN> odd"),
        make_record("d", "broken.png", "What?", "half \ud83d a"),
        make_record(5, "gone<b>.png", "What?", "nothing"),
    ]
    (tmp_path / "all.json").write_text(json.dumps(all_records))
    return open_records(tmp_path / "all.json")


class Page(HTMLParser):
    """The tags of a page and the text within."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_lets_nothing_out(records, tmp_path):
    """A record's text would run as a script, or a page would show files of the machine."""
    write_page(tmp_path / "page.html", records, range(5), tmp_path, title=EVIL)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert "script" not in names and "\x1b" not in text and "\x07" not in text
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 1
    kind, data = pictures[0].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (384, 256)
    loading = {"src", "href", "style", "srcset", "action"}
    assert not [attrs for tag, attrs in page.tags if tag != "img" and loading & set(attrs)]
    assert '<script>alert("1")</script>' in page.text  # as text
    marks = [attrs["class"] for tag, attrs in page.tags if tag == "mark"]
    assert marks == ["cn", "un", "cn", "un", "cn"]  # the legend, record 0, record 1
    for words in ("leaves", "not a picture", "no such image", "closes nothing", "hint: a bus"):
        assert words in page.text


def test_the_terminal_shows_phrases(records, tmp_path):
    """Phrases could not be told apart, or a record could clear the reader's screen."""
    stream = io.StringIO()
    show_records(
        Console(file=stream, force_terminal=True, color_system="truecolor", width=100),
        records,
        range(5),
        tmp_path,
    )
    text = stream.getvalue()
    assert "\x1b[32ma dog\x1b[0m" in text and "\x1b[4;31ma cat\x1b[0m" in text
    assert "▀" in text and "\x1b[2J" not in text and "\x07" not in text
    plain = io.StringIO()
    show_records(Console(file=plain, width=100), records, [0, 2], tmp_path)
    assert "<SPAN>a dog</CN>" in plain.getvalue() and "\x1b" not in plain.getvalue()
    assert "closes nothing" in plain.getvalue() and "leaves" in plain.getvalue()


def test_which_records_are_shown(records):
    """The reader would look at other records than were asked for."""
    assert choose_records(records, index=3, n=5) == [3, 4]
    assert choose_records(records, name="5") == [4] and choose_records(records, name="a", n=3) == [0]
    assert (
        choose_records(records, n=3, seed=1) == choose_records(records, n=3, seed=1)
        and len(choose_records(records, n=99)) == 5
    )
    for wrong, words in (
        ({"index": 5}, "0 … 4"),
        ({"name": "b"}, "'b'"),
        ({"n": 0}, "at least 1"),
        ({"index": 1, "name": "a"}, "not both"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_records(records, **wrong)


def test_a_page_is_bounded(records, tmp_path):
    """A page of a whole set would be a page that no browser opens."""
    with pytest.raises(ValueError, match="at most 1000"):
        write_page(tmp_path / "page.html", records, [0] * 1001, None)
    with pytest.raises(ValueError, match=r"ends in \.html"):
        write_page(tmp_path / "all.json", records, [0], None)
    assert not (tmp_path / "page.html").exists() and len(open_records(tmp_path / "all.json")) == 5
