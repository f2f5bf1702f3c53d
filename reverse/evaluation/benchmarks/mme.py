"""MME (https://arxiv.org/abs/2306.13394): accuracy, accuracy+ and score of each task, and their totals.

A picture has two questions; accuracy+ counts pictures whose both answers are right; a task's score is
(accuracy + accuracy+) × 100. The hallucination subset is existence, count, position and color (at most 800);
perception has ten tasks, cognition four. Answers are read as published (the first four characters) and
strictly.

The questions are read from any form in which they are published: `lines` (mme.jsonl, the hub's columns),
`parquet` (the hub's files, pictures inside), `release` (a folder per task, texts and pictures). The first
form that exists is used. In the released folder only the folders of the fourteen tasks are read, not
eval_tool or your own notes.

Differences from the published tool, each tested: the two questions of a picture are found by its name, not as
neighbouring lines; an empty answer is "other" (wrong), while the tool stops with an error; tabs and newlines
in an answer change nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.benchmarks.benchmark import (
    DEFAULT_SCORING,
    SHARED_IMAGES,
    Benchmark,
    PublishedFile,
    QuestionRow,
    ScoringOptions,
)
from reverse.evaluation.benchmarks.published_rows import ParquetPicture, import_pyarrow
from reverse.evaluation.reading.answers import BenchmarkAnswer
from reverse.evaluation.reading.yes_no import Reading
from reverse.evaluation.scoring.answer_table import (
    allowed_missing,
    list_names,
    make_table,
    refuse_other_picture,
)
from reverse.evaluation.scoring.yes_no_counts import (
    count_both_readings,
    make_unanswered_metrics,
    split_by_group,
)
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio, total
from reverse.files.entries import FileEntry, read_entries
from reverse.files.text_reading import read_text

__all__ = ["COGNITION", "HALLUCINATION", "MME", "MME_HALL", "PERCEPTION", "read_mme", "score"]

HALLUCINATION = ("existence", "count", "position", "color")
PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)

Form = Literal["lines", "parquet", "release"]
# Where each form lies under a root, the published place first, then under MME's own folder.
FORMS: Mapping[Form, tuple[str, ...]] = {
    "lines": ("MME/mme.jsonl", "MME/mme.json", "mme/mme.jsonl", "mme.jsonl", "mme.json"),
    "parquet": ("MME/data", "MME/parquet", "mme/data", "data", "parquet"),
    "release": ("MME/MME_Benchmark_release_version", "mme/MME_Benchmark_release_version",
                "MME_Benchmark_release_version"),
}  # fmt: skip
_COLUMNS = ["question_id", "question", "answer", "category"]
_ENDINGS = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")


def read_questions(files: Mapping[str, Path], tasks: tuple[str, ...] | None = None) -> Iterator[QuestionRow]:
    """Read the questions of the tasks (None: all), from the first form of the files that is found."""
    found = [(form, files[form]) for form in FORMS if form in files]
    form, path = next((each for each in found if each[1].is_file() or _holds(*each)), found[0])
    times: Counter[str] = Counter()
    for row in _read_form(form, path):
        if tasks is None or row["metadata"]["category"] in tasks:
            name = str(row["id"])
            times[name] += 1  # both questions of a picture have its id
            yield row | {"id": f"{name}#{times[name]}"}


def find_form(truth: str | Path) -> tuple[Form, Path] | None:
    """Find the form of MME's files under a root, in MME's own folder, or at a named file or folder; None
    without any.
    """
    root = Path(truth)
    if root.is_file():
        known = {".jsonl": "lines", ".json": "lines", ".parquet": "parquet"}
        return (known[root.suffix], root) if root.suffix in known else None  # type: ignore[return-value]
    for form, places in FORMS.items():
        for place in places:
            path = root / place
            if path.is_file() or (path.is_dir() and _holds(form, path)):
                return form, path
    if not root.is_dir():
        return None
    if any(root.glob("*.parquet")):
        return "parquet", root
    return ("release", root) if _holds("release", root) else None


def _holds(form: Form, folder: Path) -> bool:
    if form == "parquet":
        return any(folder.glob("**/*.parquet"))
    return any((folder / task).is_dir() for task in TASKS)


def _read_form(form: Form, path: Path) -> Iterator[QuestionRow]:
    """Read the questions of all tasks: id "TASK/PICTURE", image, prompt, metadata (category, label)."""
    if form == "lines":
        return _from_lines(path)
    return _from_parquet(path) if form == "parquet" else _from_release(path)


def _from_lines(path: Path) -> Iterator[QuestionRow]:
    for entry in read_entries(path):
        yield _make_row(entry, entry.text("image", "question_id"))


def _from_parquet(place: Path) -> Iterator[QuestionRow]:
    """Read the files of the hub: question_id, image (bytes, path), question, answer, category."""
    pq = import_pyarrow()
    for path in [place] if place.is_file() else sorted(place.glob("**/*.parquet")):
        file = pq.ParquetFile(path)
        if not set(_COLUMNS) <= set(file.schema_arrow.names):
            continue  # of something else
        number = 0
        for group in range(file.num_row_groups):
            for at, row in enumerate(file.read_row_group(group, columns=_COLUMNS).to_pylist()):
                number += 1
                made = _make_row(FileEntry(row, f"{path}, row {number}"), str(row["question_id"]))
                yield made | {"source": ParquetPicture(path, group, at)}


def _make_row(entry: FileEntry, image: str) -> QuestionRow:
    metadata = {"category": entry.text("category"), "label": entry.text("answer")}
    prompt = entry.text("question")
    return {"id": entry.id("question_id"), "image": image, "prompt": prompt, "metadata": metadata}


def _from_release(folder: Path) -> Iterator[QuestionRow]:
    """Read TASK/*.txt, in any folder of the release; a line is a question, a tab, and Yes or No."""
    for task in sorted(path for path in folder.iterdir() if path.name in TASKS and path.is_dir()):
        apart = (task / "questions_answers_YN").is_dir()
        pictures = task / "images" if apart else task
        for text in sorted((task / "questions_answers_YN" if apart else task).glob("*.txt")):
            yield from _from_text(folder, task.name, text, pictures)


def _from_text(folder: Path, task: str, text: Path, pictures: Path) -> Iterator[QuestionRow]:
    """Read the questions of one text; a text without a pair of question and Yes or No has none."""
    pairs = []
    for number, line in enumerate(read_text(text).splitlines(), 1):
        question, _, answer = line.strip().rpartition("\t")
        if question:
            pairs.append((number, question.strip(), answer.strip()))
    if not any(answer.lower() in ("yes", "no") for *_, answer in pairs):
        return
    image = next((path for end in _ENDINGS if (path := pictures / (text.stem + end)).is_file()), None)
    name = image.name if image is not None else f"{text.stem}.jpg"
    for number, question, answer in pairs:
        if answer.lower() not in ("yes", "no"):
            raise DataError(f"{text}, line {number}: the answer must be Yes or No, got {answer[:40]!r}")
        row: dict[str, Any] = {"id": f"{task}/{name}", "image": f"{task}/{name}", "prompt": question}
        row["file"] = (image or pictures / name).relative_to(folder).as_posix()
        yield row | {"metadata": {"category": task, "label": answer}}


# ---------------------------------------------------------------------- scoring
_REQUEST = re.compile(
    r"(?:please answer yes or no|answer the question using a single word or phrase)\b\.?", re.IGNORECASE
)


def read_mme(text: str) -> Reading:
    """Read yes or no as MME's tool does: "yes", else "no", among the first four characters."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(
    answers: Sequence[BenchmarkAnswer],
    truth: str | Path,
    options: ScoringOptions = DEFAULT_SCORING,
    *,
    benchmark: str = "mme",
) -> tuple[Table, list[Metric]]:
    """Score answers, one row each; parts are the tasks. Tasks without answers are left out and named in the
    notes.

    Raises MissingFileError without the questions; DataError for answers that match none, for a question of an
    answered task without an answer, and for a picture without exactly two questions.
    """
    labels = _read_labels(truth)
    tasks, pictures, wanted, unknown = [], [], [], []
    given: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for answer in answers:
        task, picture, question = _match(answer)
        label = labels.get((task, picture), {}).get(question)
        if label is None:
            unknown.append(answer.question_id)
            continue
        refuse_other_picture(answer, PurePosixPath(answer.question_id.partition("#")[0]).name)
        if question in given[(task, picture)]:
            raise DataError(f"line {answer.line}: {question[:80]!r} about {task}/{picture} is answered twice")
        given[(task, picture)].add(question)
        tasks.append(task)
        pictures.append(f"{task}/{picture}")
        wanted.append(label)
    if unknown:
        what = (
            "none of them is a question of MME: name the truth that they were asked from"
            if len(unknown) == len(answers)
            else "is it the same MME?"
        )
        raise DataError(
            f"{len(unknown)} answers match no question under {truth}: {list_names(unknown)}; {what}"
        )
    _refuse_missing(labels, given, allowed_missing(answers, options.partial))
    columns, differ = count_both_readings([answer.text for answer in answers], wanted, "yes", read_mme)
    for prefix in ("", "strict_"):
        columns |= _count_pairs(prefix, columns[f"{prefix}right"], pictures)
    present = [task for task in dict.fromkeys((*PERCEPTION, *COGNITION, *tasks)) if task in tasks]
    columns |= split_by_group(columns, tasks, present)
    answered = set(present)
    left_out = [task for task in dict.fromkeys(task for task, _ in labels) if task not in answered]
    table = make_table(
        benchmark, answers, columns, clusters=pictures, parts=tasks,
        notes={"readings_differ": differ, "tasks_left_out": left_out},
    )  # fmt: skip
    metrics = _make_metrics("", present)
    if differ:
        metrics += _make_metrics("strict_", present)
        metrics += make_unanswered_metrics(columns)
    return table, metrics


def _count_pairs(prefix: str, right: np.ndarray, pictures: Sequence[str]) -> dict[str, np.ndarray]:
    """Count each picture in the row of its first answer: `pairs`, and `both` if both answers are right."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, picture in enumerate(pictures):
        rows[picture].append(row)
    pairs, both = np.zeros(len(right)), np.zeros(len(right))
    for first, *rest in rows.values():
        pairs[first] = 1
        both[first] = float(len(rest) == 1 and right[first] == right[rest[0]] == 1)
    return {f"{prefix}pairs": pairs, f"{prefix}both": both}


_TOTALS = (
    ("score_hallucination", HALLUCINATION, "hallucination score (of 800)"),
    ("score_perception", PERCEPTION, "perception score (of 2000)"),
    ("score_cognition", COGNITION, "cognition score (of 800)"),
    ("score_full", (*PERCEPTION, *COGNITION), "full score (of 2800)"),
)


def _make_metrics(prefix: str, present: Sequence[str]) -> list[Metric]:
    """Make the metrics: totals of the groups whose tasks are all there, then each task."""
    before = "strict: " if prefix else ""
    made = [
        _make_score(prefix, name, tasks, before + title)
        for name, tasks, title in _TOTALS
        if set(tasks) <= set(present)
    ]
    for task in present:
        right, asked, both, pairs = (f"{prefix}{c}@{task}" for c in ("right", "asked", "both", "pairs"))
        title = f"{before}{task} "
        made += [
            _make_score(prefix, f"score@{task}", (task,), f"{title}score (of 200)"),
            ratio(f"{prefix}acc@{task}", right, asked, "high", title=f"{title}acc"),
            ratio(f"{prefix}acc_plus@{task}", both, pairs, "high", title=f"{title}acc+"),
        ]
    return made


def _make_score(prefix: str, name: str, tasks: Sequence[str], title: str) -> Metric:
    """Make the metric of the sum of the tasks' scores."""
    pairs = [
        (f"{prefix}{part}@{task}", f"{prefix}{whole}@{task}")
        for task in tasks
        for part, whole in (("right", "asked"), ("both", "pairs"))
    ]
    return total(prefix + name, pairs, "high", 100.0, unit="", title=title)


# ---------------------------------------------------------------------- questions
def _read_labels(truth: str | Path) -> dict[tuple[str, str], dict[str, str]]:
    """Read {(task, picture): {question: label}} from JSON lines, parquet files or the released folders."""
    form = find_form(truth)
    if form is None:
        raise MissingFileError(
            f"no MME questions under {truth}: give mme.jsonl, the hub's parquet files or the released folder"
        )
    found: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in _read_form(*form):
        picture = PurePosixPath(str(row["id"]).partition("#")[0]).stem
        label = row["metadata"]["label"].strip().lower()
        if label not in ("yes", "no"):
            raise DataError(
                f"MME under {truth}: the answer to {row['prompt'][:80]!r} must be yes or no, got "
                f"{label[:40]!r}"
            )
        found[(row["metadata"]["category"], picture)][_plain(row["prompt"])] = label
    odd = [f"{task}/{picture}" for (task, picture), both in found.items() if len(both) != 2]
    if odd:
        raise DataError(f"MME under {truth}: pictures without exactly two questions: {list_names(odd)}")
    return found


def _match(answer: BenchmarkAnswer) -> tuple[str, str, str]:
    """Return task, picture and question; `question_id` is "TASK/PICTURE.png", or that with "#1" or "#2"."""
    before = PurePosixPath(answer.question_id.partition("#")[0])
    task = str(answer.metadata.get("category") or before.parent.name or before.parts[0])
    return task, before.stem, _plain(answer.prompt)


def _plain(question: str) -> str:
    """Remove requests for a short answer, which some programs leave out or add."""
    return " ".join(_REQUEST.sub(" ", question).split())


def _refuse_missing(
    labels: dict[tuple[str, str], dict[str, str]], given: dict[tuple[str, str], set[str]], allowed: float
) -> None:
    tasks = {task for task, _ in given}
    missing = [
        f"{task}/{picture}: {question}"
        for (task, picture), both in labels.items()
        if task in tasks
        for question in both
        if question not in given.get((task, picture), ())
    ]
    if len(missing) > allowed:
        raise DataError(
            f"{len(missing)} questions of the answered MME tasks have no answer: {list_names(missing)}; "
            "start `reverse eval` again to answer them, or give --partial to score the others"
        )


# ---------------------------------------------------------------------- records
_FILES = {
    "lines": PublishedFile(("MME/mme.jsonl",), "rows of the hub as JSON lines", "scenes, or your own export"),
    "parquet": PublishedFile(
        ("MME/data", "MME/parquet"), "folder of parquet files, pictures inside", "hub: lmms-lab/MME"
    ),
    "release": PublishedFile(
        ("MME/MME_Benchmark_release_version",), "folder of tasks with pictures", "MME, on request"
    ),
}
_ALTERNATIVES = (("lines",), ("parquet",), ("release",))
_IMAGES = ("MME/MME_Benchmark_release_version", "MME/images", SHARED_IMAGES)

MME_HALL = Benchmark(
    name="mme-hall",
    title="MME, hallucination subset",
    aliases=("mme-hallucination",),
    kind="yes_no",
    files=_FILES,
    images=_IMAGES,
    images_source="part of the above",
    read_questions=partial(read_questions, tasks=HALLUCINATION),
    score=partial(score, benchmark="mme-hall"),
    pictures_in="parquet",
    max_new_tokens=128,
    unique_ids=False,
    count=240,
    alternatives=_ALTERNATIVES,
)
MME = Benchmark(
    name="mme",
    title="MME, full set",
    kind="yes_no",
    files=_FILES,
    images=_IMAGES,
    images_source="part of the above",
    read_questions=read_questions,
    score=score,
    holds_truth=lambda truth, _: find_form(truth) is not None,
    pictures_in="parquet",
    max_new_tokens=128,
    in_all=False,  # it holds the hallucination subset, which is what is reported
    unique_ids=False,
    count=2374,
    alternatives=_ALTERNATIVES,
)
