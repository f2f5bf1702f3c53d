"""Every value of every published row, replaced by odd ones: questions are made, or an error names the row."""

import math
import sys

import pytest

from reverse.errors import ReverseError
from reverse.evaluation import benchmarks
from reverse.evaluation.benchmarks.published_rows import PublishedRow, read_published
from reverse.files.entries import FileEntry
from tests.evaluation.graded.published import WRITERS

ABSENT = object()
ODD = (
    ABSENT, None, True, 0, -1, 10**30, 1.5, math.nan, math.inf, "", " ", "\x00", "Z", "<image 9>", "[",
    "['a'", "../../x", [], ["a"], [None, None], [["a"], [0, 99, -1]], {}, {"bytes": b""}, {"task": []}, b"x",
    "x" * 10_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for write in WRITERS.values():
        write(root)
    return root


def module_of(benchmark):
    return sys.modules[benchmark.read_questions.__module__]


@pytest.mark.parametrize("name", list(WRITERS))
def test_odd_values_give_questions_or_one_clear_error(root, name, monkeypatch):
    """A damaged row would end in a traceback without file and row, or be asked as another question."""
    benchmark = benchmarks.named_one(name)
    files = benchmark.found(root)
    changed, refused = [], 0

    def read_changed(place, pattern="*.parquet"):
        for row in read_published(place, pattern):
            values = dict(row.entry.row)
            for key, value in changed:
                if value is ABSENT:
                    values.pop(key, None)
                else:
                    values[key] = value
            yield PublishedRow(FileEntry(values, row.entry.where), row.number, row.name, row.pictures)

    patterns = {"geoqa": "*.json", "mmmu": "*/validation-*.parquet", "mmk12": "test-*.parquet"}
    first = next(iter(read_published(next(iter(files.values())), patterns.get(name, "*.parquet"))))
    monkeypatch.setattr(module_of(benchmark), "read_published", read_changed)
    for key in first.entry.row:
        for value in ODD:
            changed[:] = [(key, value)]
            try:
                questions = list(benchmark.read_questions(files))
            except ReverseError as error:
                refused += 1
                assert first.entry.where.split(",")[0].rpartition("/")[2].split(".")[-1] in str(error)
                assert len(str(error)) < 700 and "\n" not in str(error), (key, value)
                continue
            for question in questions:
                assert question["key"].answers and isinstance(question["prompt"], str), (key, value)
    assert refused > 10
