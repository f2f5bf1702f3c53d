"""The report: what stands in it, what is escaped, and that it needs nothing from outside."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from reverse.evaluation.reports.html_page import render_phrases
from reverse.evaluation.reports.reporting import ReportSettings, write_report
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.scored_tables import Table, ratio, save_scored

FEW = BootstrapSettings(rounds=200)
EVIL = '<script>alert("x")</script> | a `b`'


class Page(HTMLParser):
    """Everything that was opened, with its attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.said.append(data)


def run(folder, wrong=(0, 1, 0), name="chair"):
    folder.mkdir(parents=True)
    rows = [
        {
            "question_id": i, "image_id": f"{i}.jpg", "prompt": "What is it?",
            "text": "A dog and <b>two</b> cups.",
            "phrases": [
                {"text": "A dog", "start": 0, "end": 5, "p_un": 0.001, "status": "accepted"},
                {"text": "<b>two</b> cups", "start": 10, "end": 25, "p_un": 0.8, "status": "unresolved"},
            ],
            "attempts": [{"kind": "rejected", "phrase": EVIL, "p_un": 0.9, "temperature": 0.1}] if i else [],
            "usage": {"kept": 10, "discarded": 5}, "timing": {"seconds": 2.0},
            "successful_correction": i != 2, "metadata": {"label": "yes"},
        }
        for i in range(3)
    ]  # fmt: skip
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ["0", "1", "2"]
    columns = {"wrong": np.array(wrong, float), "mentions": np.array([2.0, 2, 3]), "answers": np.ones(3)}
    metrics = [
        ratio("chair_i", "wrong", "mentions", "low", title="CHAIRi"),
        ratio("length", "mentions", "answers", "neither", unit="words", title="words"),
    ]
    table = Table("chair", [f"{k}.jpg" for k in keys], columns, keys=keys, notes={"parser": EVIL})
    save_scored(folder / f"{name}.json", table, metrics)
    return folder


def test_one_page_holds_scores_costs_plots_and_examples(tmp_path):
    """A reader would have to look elsewhere, or a page would load something from the net."""
    ours = run(tmp_path / "ours")
    (ours / "plots").mkdir()
    (ours / "plots" / "roc.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    (ours / "plots" / "roc.png").write_bytes(b"\x89PNG")
    base = run(tmp_path / "base", (1, 2, 2))
    written = write_report([ours, base], tmp_path / "out", ReportSettings("T & co", bootstrap=FEW))
    source = (tmp_path / "out" / "report.html").read_text()
    page = Page(source)
    said = " ".join(page.said)
    assert [p.name for p in written] == ["report.html", "report.md"]
    for expected in ("T & co", "CHAIRi % ↓", "14.3", "71.4", "15.00", "2.00", "33.3", "taken back", EVIL):
        assert expected in said, expected
    assert not any(tag == "script" for tag, _ in page.tags)
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 1 and images[0].startswith("data:image/svg+xml;base64,")
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href")]
    assert all(link.startswith("data:") for link in links)
    again = write_report([ours, base], tmp_path / "out2", ReportSettings("T & co", bootstrap=FEW))
    assert [a.read_bytes() for a in again] == [b.read_bytes() for b in written]


def test_decoding_seeds_are_taken_together(tmp_path):
    """What sampling adds would have to be read off three lines."""
    folder = run(tmp_path / "ours")
    for seed, wrong in ((1, (1, 0, 1)), (2, (0, 0, 1))):
        run(tmp_path / f"s{seed}", wrong)
        (tmp_path / f"s{seed}" / "chair.json").rename(folder / f"chair.seed{seed}.json")
    write_report([folder], tmp_path / "out", ReportSettings(bootstrap=FEW))
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert "## Decoding seeds: ours chair, 3 seeds" in lines
    mean = np.mean([1, 2, 1]) / 7
    (row,) = [line for line in lines if line.startswith("| CHAIRi % ↓ |")]
    assert f"{100 * mean:.1f} (" in row and f"| {100 * np.std([1, 2, 1], ddof=1) / 7:.2f} |" in row
    assert "Decoding seeds: ours chair, 3 seeds" in (tmp_path / "out" / "report.html").read_text()


def test_markdown_is_one_table_a_benchmark(tmp_path):
    """A name would break a row of the table."""
    evil = run(tmp_path / "a|b", name="x")
    write_report([evil], tmp_path / "out", ReportSettings(bootstrap=FEW))
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert "| | CHAIRi % ↓ | words |" in lines
    (row,) = [line for line in lines if "14.3" in line]
    assert row.startswith(r"| a\|b x | 14.3 (") and row.count("|") == 5


def test_phrases_are_coloured_where_they_stand():
    """Colours would be on other words than the phrases, or text be lost."""
    text = "A dog & a cup."
    phrases = [{"text": "a cup", "start": 8, "end": 13, "p_un": 1.0, "status": "unresolved"},
               {"text": "A dog", "start": 0, "end": 5, "p_un": 0.0, "status": "accepted"}]  # fmt: skip
    source = render_phrases(text, phrases)
    assert "".join(Page(source).said) == text
    spans = [attrs for tag, attrs in Page(source).tags if tag == "span"]
    assert "hsl(120 " in spans[0]["style"] and "hsl(0 " in spans[1]["style"]
    assert spans[1]["class"] == "phrase unresolved" and spans[1]["title"] == "p(</UN>) 1"
    assert "".join(Page(render_phrases(text, [["a cup", 0.5, 1], ["gone", 0.1, 0]])).said) == text
    broken = [{"start": 5, "end": 99, "p_un": 0.1}, {"start": "0", "end": 2}, 7]
    assert render_phrases(text, broken) == "A dog &amp; a cup."


def test_pictures_of_examples_come_from_one_folder(tmp_path, picture):
    """A file outside would be read into the page because an answer names it."""
    folder = run(tmp_path / "ours")
    images = tmp_path / "images"
    images.mkdir()
    picture().save(images / "0.jpg")
    rows = [json.loads(line) for line in (folder / "chair.jsonl").read_text().splitlines()]
    rows[1]["image_id"] = "../secret.png"
    picture().save(tmp_path / "secret.png")
    (folder / "chair.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([folder], tmp_path / "out", ReportSettings(images=images, bootstrap=FEW))
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 1


def test_what_cannot_be_read_is_listed(tmp_path):
    """A damaged file would be missing from the page without a word."""
    folder = run(tmp_path / "ours")
    (folder / "torn.jsonl").write_text('{"text": "a')
    (folder / "bad.json").write_text('{"format": "reverse-scored-1"}')
    (folder / "other.json").write_text("[1]")
    write_report([folder], tmp_path / "out", ReportSettings(bootstrap=FEW))
    source = (tmp_path / "out" / "report.html").read_text()
    assert "torn.jsonl" in source and "bad.json" in source and "other.json" not in source


def test_nothing_to_report_is_an_error(tmp_path):
    """An empty page would look like a finished one."""
    with pytest.raises(ValueError, match="nothing to report"):
        write_report([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="is not a folder"):
        write_report([tmp_path / "missing"], tmp_path / "out")


def test_rows_for_lmms_eval(tmp_path):
    """Another program would find other answers than were scored."""
    folder = run(tmp_path / "ours")
    run(tmp_path / "ours2", name="other")
    (folder / "other.jsonl").write_text(
        (tmp_path / "ours2" / "other.jsonl").read_text().replace("dog", "cat")
    )
    written = write_report([folder], tmp_path / "out", ReportSettings(bootstrap=FEW, lmms_eval=True))
    rows = [json.loads(line) for line in written[-1].read_text().splitlines()]
    assert written[-1].name == "ours_chair_samples_chair.jsonl"
    assert [row["chair_i"] for row in rows] == [0, 0.5, 0] and rows[0]["target"] == "yes"
    assert set(rows[0]) >= {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash"}
    assert rows[1]["resps"] == [["A dog and <b>two</b> cups."]] and rows[1]["doc"]["question_id"] == 1
    (folder / "chair.jsonl").rename(folder / "renamed.jsonl")
    assert len(write_report([folder], tmp_path / "out2", ReportSettings(bootstrap=FEW, lmms_eval=True))) == 2
