"""AMBER (https://arxiv.org/abs/2311.07397): hallucinations in captions, and yes/no questions about absent
things.

Generative (AMBER-G): the nouns of an answer that AMBER's word net knows are right, made up, or neither.
CHAIR made up of all, Cover objects named of those annotated, Hal answers with any, Cog objects named of those
annotators expect to be made up. Discriminative (AMBER-D): accuracy, precision, recall and F1 with "no"
positive, overall and for existence, attribute (state, number, action) and relation.

A noun is close to a known word if the word vectors of spaCy's en_core_web_lg say so (similarity above 0.8),
as published. Without that model only equal words are close, and the table's notes say so: a few synonyms then
count as made up.

Differences from the published script, each tested:

- `metrics.txt` is not evaluated: it holds the counters' start values (0, and 0.001 in denominators); figures
  here have no 0.001, and F1 is not made from rounded precision and recall, with 0.0001 (existence: 0.001)
  added. The notes' `published` has what AMBER's own script prints, with all of this.
- REVERSE's script holds that function and never calls it: it prints only the mean of 100 bootstrap rounds
over the answers (generator 42, unrounded, F1 with 1e-6 added) with the 2.5 and 97.5 percentiles. The
  notes' `published_bootstrap` has these lines; the mean of rounds is not an estimate of anything else than
  the figure itself.
- An item without annotated objects is not counted in Cover or Cog. The script slices `[-0:]`, which would be
  the whole list; it is empty then, so the figures are the same.
- The script prints nothing for relation questions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverse.evaluation.benchmarks.benchmark import (
    DEFAULT_SCORING,
    SHARED_IMAGES,
    Benchmark,
    PublishedFile,
    QuestionRow,
    ScoringOptions,
    digest_ids,
    make_row,
    read_items,
)
from reverse.evaluation.reading import english_words
from reverse.evaluation.reading.amber_words import PLACES, AmberWords, Close, find_amber_file, find_closeness
from reverse.evaluation.reading.answers import BenchmarkAnswer, leave_out_longer
from reverse.evaluation.reading.file_lookup import find_files
from reverse.evaluation.reading.yes_no import Reading
from reverse.evaluation.scoring.answer_table import make_table, refuse_incomplete
from reverse.evaluation.scoring.yes_no_counts import (
    count_both_readings,
    make_quartet,
    make_unanswered_metrics,
    split_by_group,
)
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio
from reverse.files.cell_values import read_id
from reverse.files.entries import FileEntry, read_entries

__all__ = ["AMBER_D", "AMBER_G", "read_amber", "score_captions", "score_questions"]

GENERATIVE = (
    ratio("chair", "made_up", "nouns", "low", title="CHAIR"),
    ratio("cover", "covered", "objects", "high", title="Cover"),
    ratio("hal", "any_made_up", "answers", "low", title="Hal"),
    ratio("cog", "expected", "expectable", "low", title="Cog"),
)
_DIMENSION = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
}  # any other discriminative type: relation
_ATTRIBUTES = ("state", "number", "action")


def read_amber(text: str) -> Reading:
    """Read yes or no as REVERSE's script does: "yes" anywhere means yes, else "no" anywhere means no."""
    lowered = text.lower()
    return "yes" if "yes" in lowered else "no" if "no" in lowered else "other"


# ---------------------------------------------------------------------- files
def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read the queries (id, image, query); annotations have the ids of the queries."""
    kinds: dict[str | None, str] = {}
    for entry in read_entries(files["annotations"]) if "annotations" in files else ():
        kinds[read_id(entry.id("id"))] = entry.text("type")
    for entry in read_entries(files["questions"]):
        row = make_row(entry)
        kind = kinds.get(read_id(row["id"]))
        yield row | {"metadata": {} if kind is None else {"type": kind}}


def _read_annotations(truth: str | Path) -> dict[str, dict[str, Any]]:
    """Read the annotations by id. Raises DataError naming an entry that is not an annotation."""
    return read_items(
        find_amber_file(truth, "annotations.json"), _read_annotation, lambda entry, _: entry.id("id")
    )


def _read_annotation(entry: FileEntry) -> dict[str, Any]:
    kind = entry.text("type")
    if kind == "generative":
        hallu = entry.texts("hallu") if "hallu" in entry.row else []
        return {"type": kind, "truth": entry.texts("truth"), "hallu": hallu}
    label = entry.text("truth")
    if label not in ("yes", "no"):
        raise entry.wrong("truth", label, "yes or no")
    return {"type": kind, "truth": label}


def _match_items(
    answers: Sequence[BenchmarkAnswer], truth: str | Path, options: ScoringOptions, generative: bool
) -> dict[str, dict[str, Any]]:
    """Return AMBER's annotations. Raises DataError for answers to questions of the other half of AMBER."""
    items = _read_annotations(truth)
    asked = [name for name, item in items.items() if (item["type"] == "generative") == generative]
    title = "AMBER's captions (amber-g)" if generative else "AMBER's questions (amber-d)"
    refuse_incomplete(title, asked, answers, options.partial)
    return items


def _holds_truth(truth: str | Path, answers: Sequence[BenchmarkAnswer], generative: bool) -> bool:
    """Whether the truth is AMBER's, and the answers are to its captions (or not)."""
    if not find_files(truth, PLACES, ["relation.json"]):
        return False
    items = _read_annotations(truth)
    described = any(items.get(a.question_id, {}).get("type") == "generative" for a in answers)
    return described == generative


# ---------------------------------------------------------------------- captions
def score_captions(
    answers: Sequence[BenchmarkAnswer],
    truth: str | Path,
    options: ScoringOptions = DEFAULT_SCORING,
    close: Close | None = None,
) -> tuple[Table, list[Metric]]:
    """Score AMBER-G, one row per answer. `close` replaces the word vectors.

    Raises MissingFileError without AMBER's files; DataError for answers to other questions.
    """
    items = _match_items(answers, truth, options, generative=True)
    answers = leave_out_longer(answers, english_words.LONGEST)
    net = AmberWords(truth)
    english_words.prepare_words()
    how = "as given"
    if close is None:
        close, how = find_closeness()
    counts = [_count(answer.text, items[answer.question_id], net, close) for answer in answers]
    names = ("nouns", "made_up", "any_made_up", "covered", "objects", "expected", "expectable")
    columns = dict(zip(names, np.array(counts, float).T, strict=True))
    notes = {
        "similarity": how,
        "language": english_words.describe_versions(),
        "published": _published_generative(columns),
        "published_bootstrap": _published_rounds(columns, _compute_caption_figures),
    }
    return make_table("amber-g", answers, columns, notes=notes), list(GENERATIVE)


def _count(text: str, item: Mapping[str, Any], net: AmberWords, close: Close) -> tuple[int, ...]:
    """Count in one answer: nouns, made-up nouns, 1 if there are any; covered and annotated objects; said and
    annotated expected hallucinations.
    """
    objects, expectable = item["truth"], item.get("hallu", [])
    right, wrong = net.words(objects), net.words(expectable)
    right_words, wrong_words = {word for word, _ in right}, {word for word, _ in wrong}
    covered: set[int] = set()
    expected: set[int] = set()
    made_up = 0
    nouns = [noun for noun in english_words.find_nouns(text) if noun in net.known]
    for noun in nouns:
        if noun in net.safe:
            continue
        if noun in right_words:
            covered.add(next(i for word, i in right if word == noun))
            continue
        if noun in wrong_words:
            expected.add(next(i for word, i in wrong if word == noun))
        expected.update(_first_close(noun, wrong, close))
        near = _first_close(noun, right, close)
        covered.update(near)
        made_up += not near
    return len(nouns), made_up, int(made_up > 0), len(covered), len(objects), len(expected), len(expectable)


def _first_close(noun: str, words: Sequence[tuple[str, int]], close: Close) -> list[int]:
    """Return the index of the first word that is close to the noun, in a list, which is empty without one."""
    return next(([i] for word, i in words if close(noun, word)), [])


def _published_generative(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute what AMBER's own script prints: percent with one digit, 0.001 in every denominator."""
    sums = {name: float(column.sum()) for name, column in columns.items()}
    figures = _compute_caption_figures(sums | {"answers": float(len(columns["nouns"]))})
    return {name: round(value, 1) for name, value in figures.items()}


def _published_rounds(
    columns: Mapping[str, np.ndarray], figures: Callable[[Mapping[str, float]], dict[str, float]]
) -> dict[str, str]:
    """Compute what REVERSE's script prints: mean and percentiles of 100 rounds over the answers, in their
    order.
    """
    plain = {name: column for name, column in columns.items() if "@" not in name}
    answers = len(next(iter(plain.values())))
    rng = np.random.default_rng(42)
    rounds: list[dict[str, float]] = []
    for _ in range(100):
        drawn = np.bincount(rng.choice(answers, answers, replace=True), minlength=answers)
        sums = {name: float(drawn @ column) for name, column in plain.items()}
        rounds.append(figures(sums | {"answers": float(answers)}))
    printed = {}
    for name in rounds[0]:
        values = np.array([each[name] for each in rounds])
        low, high = np.percentile(values, [2.5, 97.5])
        printed[name] = f"{values.mean():.1f} ({low:.1f} – {high:.1f})"
    return printed


def _compute_caption_figures(total: Mapping[str, float]) -> dict[str, float]:
    clean = total["answers"] - total["any_made_up"]
    return {
        "CHAIR": total["made_up"] / (total["nouns"] + 0.001) * 100,
        "Cover": total["covered"] / (total["objects"] + 0.001) * 100,
        "Hal": 100 - clean / (total["answers"] + 0.001) * 100,
        "Cog": total["expected"] / (total["expectable"] + 0.001) * 100,
    }


def _compute_question_figures(total: Mapping[str, float]) -> dict[str, float]:
    precision = total["hit"] / (total["said"] + 0.001)
    recall = total["hit"] / (total["positive"] + 0.001)
    return {
        "Accuracy": total["right"] / (total["asked"] + 0.001) * 100,
        "Precision": precision * 100,
        "Recall": recall * 100,
        "F1": 2 * precision * recall / (precision + recall + 1e-6) * 100,
    }


def _percent(part: float, whole: float) -> float:
    return round(part / (whole + 0.001) * 100, 1)


# ---------------------------------------------------------------------- questions
def score_questions(
    answers: Sequence[BenchmarkAnswer], truth: str | Path, options: ScoringOptions = DEFAULT_SCORING
) -> tuple[Table, list[Metric]]:
    """Score AMBER-D, one row per answer. Raises what `score_captions` raises."""
    known = _match_items(answers, truth, options, generative=False)
    items = [known[answer.question_id] for answer in answers]
    dimensions = [_DIMENSION.get(item["type"], "relation") for item in items]
    columns, differ = count_both_readings(
        [answer.text for answer in answers], [item["truth"] for item in items], "no", read_amber
    )
    present = [name for name in ("existence", *_ATTRIBUTES, "relation") if name in dimensions]
    columns |= split_by_group(columns, dimensions, present)
    if any(name in present for name in _ATTRIBUTES):
        kinds = ["attribute" if name in _ATTRIBUTES else name for name in dimensions]
        columns |= split_by_group({n: c for n, c in columns.items() if "@" not in n}, kinds, ["attribute"])
        present.insert(1 if present[0] == "existence" else 0, "attribute")
    notes = {
        "readings_differ": differ,
        "published": {
            name: _published_quartet(columns, suffix, 0.001 if name == "existence" else 0.0001)
            for name, suffix in (("overall", ""), *((name, f"@{name}") for name in present))
        },
        "published_bootstrap": _published_rounds(columns, _compute_question_figures),
    }
    table = make_table("amber-d", answers, columns, notes=notes)
    metrics = _quartets("", present)
    if differ:
        metrics += _quartets("strict_", present)
        metrics += make_unanswered_metrics(columns)
    return table, metrics


def _quartets(prefix: str, dimensions: Sequence[str]) -> list[Metric]:
    title = "strict: " if prefix else ""
    made = make_quartet(prefix, title=title)
    for name in dimensions:
        made += make_quartet(prefix, f"@{name}", f"{title}{name} ")
    return made


def _published_quartet(columns: Mapping[str, np.ndarray], suffix: str, added: float) -> dict[str, float]:
    """Compute what AMBER's own script prints: F1 from rounded figures."""
    total = {
        name: float(columns[name + suffix].sum()) for name in ("right", "asked", "hit", "said", "positive")
    }
    precision, recall = _percent(total["hit"], total["said"]), _percent(total["hit"], total["positive"])
    f1 = 2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + added)
    return {
        "Accuracy": _percent(total["right"], total["asked"]),
        "Precision": precision,
        "Recall": recall,
        "F1": round(f1 * 100, 1),
    }


# ---------------------------------------------------------------------- records
_SOURCE = "github.com/junyangwang0410/AMBER, data/"
_TRUTH = {
    name.partition(".")[0]: PublishedFile((f"amber/metadata/{name}", f"amber/{name}"), what, _SOURCE, "score")
    for name, what in (
        ("annotations.json", "truth"),
        ("relation.json", "which words mean which object"),
        ("safe_words.txt", "words that are never wrong"),
    )
}


def _queries(file: str, count: int) -> PublishedFile:
    places = (
        f"amber/questions/{file}.jsonl", f"amber/questions/{file}.json", f"amber/query/{file}.json",
    )  # fmt: skip
    return PublishedFile(places, f"{count} queries", _SOURCE + "query/")


_CAPTION_IDS, _QUESTION_IDS = range(1, 1005), range(1005, 15221)  # known by construction
_IMAGES = ("amber/image", "amber/images", SHARED_IMAGES)
_IMAGES_SOURCE = "AMBER's pictures (linked from its README), AMBER_1.jpg …"

AMBER_G = Benchmark(
    name="amber-g",
    title="AMBER-G",
    aliases=("amber",),
    kind="caption",
    files={"questions": _queries("query_generative", len(_CAPTION_IDS))} | _TRUTH,
    images=_IMAGES,
    images_source=_IMAGES_SOURCE,
    read_questions=read_questions,
    score=score_captions,
    holds_truth=lambda truth, answers: _holds_truth(truth, answers, generative=True),
    needs="words",
    ids_sha256=digest_ids(_CAPTION_IDS),
    count=len(_CAPTION_IDS),
)
AMBER_D = Benchmark(
    name="amber-d",
    title="AMBER-D",
    aliases=("amber",),
    kind="yes_no",
    files={"questions": _queries("query_discriminative", len(_QUESTION_IDS))} | _TRUTH,
    images=_IMAGES,
    images_source=_IMAGES_SOURCE,
    read_questions=read_questions,
    score=score_questions,
    holds_truth=lambda truth, answers: _holds_truth(truth, answers, generative=False),
    max_new_tokens=128,
    ids_sha256=digest_ids(_QUESTION_IDS),
    count=len(_QUESTION_IDS),
)
