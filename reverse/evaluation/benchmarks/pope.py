"""POPE (https://arxiv.org/abs/2305.10355): "Is there a … in the picture?" in three settings.

Accuracy, precision, recall, F1 ("yes" is positive) and the share of yes, for each setting and their mean.
Differences from the published script, each tested: answers are matched with their labels by question and
picture, not by their order; the interval of the mean resamples within each setting, not over all settings
together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.benchmarks.benchmark import (
    COCO_IMAGES,
    DEFAULT_SCORING,
    SHARED_IMAGES,
    Benchmark,
    PublishedFile,
    QuestionRow,
    ScoringOptions,
    make_row,
)
from reverse.evaluation.reading.answers import BenchmarkAnswer
from reverse.evaluation.reading.file_lookup import Pictures, clear_path, find_files
from reverse.evaluation.reading.yes_no import Reading
from reverse.evaluation.scoring.answer_table import allowed_missing, list_names, make_table
from reverse.evaluation.scoring.yes_no_counts import (
    count_both_readings,
    make_quartet,
    make_unanswered_metrics,
    split_by_group,
)
from reverse.evaluation.stats.scored_tables import Metric, Table, macro, ratio
from reverse.files.cell_values import describe, read_id
from reverse.files.entries import read_entries

__all__ = ["POPE", "POPE_AOKVQA", "POPE_GQA", "read_pope", "score"]

PLACES = (  # of the truth, under a root or in the folder itself
    "pope/coco_pope", "pope/coco", "pope/aokvqa", "pope/gqa", "pope",
    "coco_pope", "coco", "aokvqa", "gqa", ".",
)  # fmt: skip
SETTINGS = ("random", "popular", "adversarial")
_NAME = re.compile(r"(?:(.+)_)?pope_(?:seem_)?(random|popular|adversarial)")
# What LLaVA's file puts behind every question.
SINGLE_WORD = "\nAnswer the question using a single word or phrase."


def read_pope(text: str) -> Reading:
    """Read yes or no as LLaVA's script does.

    In the text before the first full stop, commas taken out, one of the words (between single spaces) "No",
    "not", "no" means no. Everything else, even an empty answer, means yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"


# ---------------------------------------------------------------------- questions
def read_llava_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read LLaVA's file (unique ids, category) if it exists, else the three files of POPE."""
    if "llava" not in files:
        yield from read_questions(files)
        return
    labels = {name: read_entries(files[name]) for name in SETTINGS if name in files}
    at: Counter[str] = Counter()
    for entry in read_entries(files["llava"]):
        category = entry.text("category")
        beside = labels.get(category, [])
        metadata = {"category": category}
        if at[category] < len(beside):  # published in the same order, label by label
            label = beside[at[category]]
            if label.row.get("image") != entry.row.get("image"):
                raise DataError(
                    f"{files['llava']} and {files[category]} do not ask the same: question "
                    f"{describe(entry.row.get('question_id'))} is about {describe(entry.row.get('image'))}, "
                    f"its label about {describe(label.row.get('image'))}; fetch both again"
                )
            metadata["label"] = label.text("label")
        at[category] += 1
        yield make_row(entry, metadata)


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read POPE's own files, one per setting: question_id (from 1 in each), image, text, label."""
    for setting in SETTINGS:
        for entry in read_entries(files[setting]):
            row = make_row(entry, {"category": setting, "label": entry.text("label")})
            yield row | {"id": f"{setting}/{row['id']}"}


# ---------------------------------------------------------------------- scoring


def score(
    answers: Sequence[BenchmarkAnswer],
    truth: str | Path,
    options: ScoringOptions = DEFAULT_SCORING,
    *,
    benchmark: str = "pope",
    stem: str = "coco",
) -> tuple[Table, list[Metric]]:
    """Score answers, one row each; parts are the settings. The names of label files begin with `stem`.

    Raises MissingFileError without label files, DataError for answers that match no label.
    """
    labels = _read_labels(truth, stem)
    questions = _read_question_file(truth)
    pictures = {
        setting: Pictures(dict.fromkeys(image for image, _ in asked)) for setting, asked in labels.items()
    }
    parts, said, labels_of = [], [], []
    used: dict[str, Counter[tuple[str, str]]] = {setting: Counter() for setting in labels}
    unknown: list[str] = []
    for answer in answers:
        setting, image, question = _match(answer, questions, labels)
        found = pictures[setting].find(image) if setting in pictures else None
        known = labels[setting].get((found, question)) if found is not None else None
        if found is None or known is None:
            unknown.append(answer.question_id)
            continue
        time = used[setting][(found, question)]
        used[setting][(found, question)] += 1
        parts.append(setting)
        said.append(answer.text)
        labels_of.append(known[min(time, len(known) - 1)])  # too many of one: refused below
    if unknown:
        what = (
            "none of them is a question of POPE" if len(unknown) == len(answers) else "is it the same POPE?"
        )
        raise DataError(f"{len(unknown)} answers match no label under {truth}: {list_names(unknown)}; {what}")
    _refuse_missing(labels, used, allowed_missing(answers, options.partial))
    columns, differ = count_both_readings(said, labels_of, "yes", read_pope)
    names = [setting for setting in SETTINGS if setting in parts]
    columns |= split_by_group(columns, parts, names)
    table = make_table(benchmark, answers, columns, parts=parts, notes={"readings_differ": differ})
    metrics = _make_metrics("", names)
    if differ:
        metrics += _make_metrics("strict_", names)
        metrics += make_unanswered_metrics(columns)
    return table, metrics


def _make_metrics(prefix: str, settings: Sequence[str]) -> list[Metric]:
    title = "strict: " if prefix else ""
    share = ratio(
        f"{prefix}yes_share", f"{prefix}said", f"{prefix}asked", "neither", title=f"{title}share of yes"
    )
    made = [macro(metric) for metric in make_quartet(prefix, title=title)] + [macro(share)]
    if len(settings) > 1:
        for setting in settings:
            made += make_quartet(prefix, f"@{setting}", f"{title}{setting} ")
            name, said, asked = (f"{prefix}{c}@{setting}" for c in ("yes_share", "said", "asked"))
            made.append(ratio(name, said, asked, "neither", title=f"{title}{setting} share of yes"))
    return made


def _read_labels(truth: str | Path, stem: str) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Read for each setting the labels of each (picture, question), one for each time it is asked."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    root = Path(truth)
    for place in PLACES:
        for path in find_files(root, (place,), ["*pope_*.json"]):
            name = _NAME.fullmatch(path.stem)
            if name is None or (name[1] or stem) != stem or name[2] in found:
                continue
            rows: dict[tuple[str, str], list[str]] = {}
            for entry in read_entries(path):
                key = _key(entry.text("image"), entry.text("text"))
                label = entry.text("label").strip().lower()
                if label not in ("yes", "no"):
                    raise entry.wrong("label", label, "yes or no")
                rows.setdefault(key, []).append(label)
            found[name[2]] = rows
    if not found:
        raise MissingFileError(
            f"no {stem}_pope_random.json, _popular or _adversarial under {truth}: give the folder with "
            f"POPE's labels"
        )
    return found


def _read_question_file(truth: str | Path) -> dict[str, dict[str, Any]]:
    """Read the rows of LLaVA's question file by id, if it exists.

    They say to which setting a question belongs.
    """
    found = find_files(truth, PLACES, ["*pope_test*.jsonl"])
    entries = [entry for path in found for entry in read_entries(path) if "category" in entry.row]
    return {str(read_id(entry.id("question_id"))): entry.row for entry in entries}


def _match(
    answer: BenchmarkAnswer, questions: Mapping[str, dict[str, Any]], labels: Mapping[str, Any]
) -> tuple[str, str, str]:
    """Return setting, picture and question of an answer; the setting is "" if it is not known."""
    row = questions.get(answer.question_id, {})
    setting = str(answer.metadata.get("category") or row.get("category") or "")
    if not setting:
        before = answer.question_id.partition("/")[0]
        setting = before if before in labels else next(iter(labels)) if len(labels) == 1 else ""
    image = answer.path or str(row.get("image", ""))
    return (setting, *_key(image, answer.prompt or str(row.get("text", ""))))


def _key(image: str, question: str) -> tuple[str, str]:
    """Return the picture and the question without the request for one word."""
    asked = question.partition("?")[0]
    return clear_path(image), " ".join(asked.lower().split())


def _refuse_missing(
    labels: Mapping[str, Mapping[tuple[str, str], list[str]]],
    used: Mapping[str, Counter[tuple[str, str]]],
    allowed: float,
) -> None:
    """Raise DataError if a question is answered too often in a setting, or more than `allowed` have no
    answer.
    """
    for setting, asked in labels.items():
        if not used[setting]:
            continue
        twice = [key for key, count in used[setting].items() if count > len(asked[key])]
        if twice:
            raise DataError(
                f"{setting}: {len(twice)} questions are answered more often than asked: "
                + list_names(f"{question!r} about {image}" for image, question in twice)
            )
        missing = [key for key, several in asked.items() if used[setting][key] < len(several)]
        if len(missing) > allowed:
            raise DataError(
                f"{setting}: {len(missing)} of {len(asked)} questions have no answer: "
                + list_names(f"{question!r} about {image}" for image, question in missing)
                + "; start `reverse eval` again to answer them, or give --partial to score the others"
            )


# ---------------------------------------------------------------------- records
def _holds_truth(truth: str | Path, stem: str) -> bool:
    """Whether the first folder with label files holds files of `stem`, or of COCO if `stem` is empty."""
    found = find_files(truth, PLACES, [f"*pope_{setting}.json" for setting in SETTINGS])
    before = found[0].name.partition("_")[0] if found else None
    return bool(found) and (before if before in ("aokvqa", "gqa") else "coco") == stem


def _files(stem: str, folders: Sequence[str], source: str, needed: Any = "run") -> dict[str, PublishedFile]:
    return {
        setting: PublishedFile(
            tuple(f"pope/{folder}_{setting}.json" for folder in folders),
            f"{setting} questions with labels",
            source,
            needed,
        )
        for setting in SETTINGS
    }


def _seem_files(stem: str) -> dict[str, PublishedFile]:
    source = f"github.com/DAMO-NLP-SG/VCD, experiments/data/POPE/{stem}/"
    return _files(stem, (f"{stem}/{stem}_pope_seem", f"{stem}/{stem}_pope"), source)


POPE = Benchmark(
    name="pope",
    title="POPE (COCO)",
    aliases=("pope-all", "pope-coco"),
    kind="yes_no",
    files={
        "llava": PublishedFile(
            ("pope/llava_pope_test.jsonl",),
            "all questions, LLaVA's ids",
            "LLaVA's evaluation files, eval.zip",
        )
    }
    | _files(
        "coco", ("coco_pope/coco_pope", "coco/coco_pope"), "github.com/RUCAIBox/POPE, output/coco/", "score"
    ),
    images=COCO_IMAGES,
    images_source="COCO 2014 (cocodataset.org)",
    read_questions=read_llava_questions,
    score=score,
    holds_truth=lambda truth, _: _holds_truth(truth, "coco"),
    max_new_tokens=128,
    unique_ids=False,
    suffix=SINGLE_WORD,
    count=8910,
    alternatives=(("llava",), SETTINGS),
)
POPE_AOKVQA = Benchmark(
    name="pope-aokvqa",
    title="POPE (A-OKVQA)",
    aliases=("pope-all",),
    kind="yes_no",
    files=_seem_files("aokvqa"),
    images=COCO_IMAGES,
    images_source="COCO val2014",
    read_questions=read_questions,
    score=partial(score, benchmark="pope-aokvqa", stem="aokvqa"),
    holds_truth=lambda truth, _: _holds_truth(truth, "aokvqa"),
    max_new_tokens=128,
    unique_ids=False,
    suffix=SINGLE_WORD,
    count=9000,
)
POPE_GQA = Benchmark(
    name="pope-gqa",
    title="POPE (GQA)",
    aliases=("pope-all",),
    kind="yes_no",
    files=_seem_files("gqa"),
    images=("pope/gqa/images", "gqa/images", "../gqa/images", SHARED_IMAGES),
    images_source="GQA images",
    read_questions=read_questions,
    score=partial(score, benchmark="pope-gqa", stem="gqa"),
    holds_truth=lambda truth, _: _holds_truth(truth, "gqa"),
    max_new_tokens=128,
    unique_ids=False,
    suffix=SINGLE_WORD,
    count=9000,
)
