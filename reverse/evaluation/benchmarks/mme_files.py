"""MME's questions from any of the forms in which it is published; running and scoring both read them here.

    kind, path = find_files("playground/data/eval")      # or MME's own folder, or one of its files
    rows = read_questions(kind, path)

Forms, the first that is there counts: `lines` (mme.jsonl, the hub's columns), `parquet` (the hub's files,
pictures inside), `release` (a folder a task, texts and pictures). In the released folder only the fourteen
tasks hold questions: eval_tool, its results and notes of one's own beside them hold none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from reverse.errors import DataError
from reverse.evaluation.benchmarks.benchmark import ParquetPicture, Row
from reverse.files.entries import Entry, read_entries
from reverse.files.text_reading import read_text

__all__ = [
    "COGNITION",
    "FORMS",
    "HALLUCINATION",
    "PERCEPTION",
    "choose_files",
    "find_files",
    "read_questions",
]

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
_IMAGES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")


def choose_files(files: Mapping[str, Path]) -> tuple[Form, Path]:
    """The form that counts among those found (an empty folder does not), and where it lies."""
    found = [(form, files[form]) for form in FORMS if form in files]
    return next((each for each in found if each[1].is_file() or _holds(*each)), found[0])


def find_files(truth: str | Path) -> tuple[Form, Path] | None:
    """The form that lies under a root, MME's own folder, or is the file or folder named; None without any."""
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


def read_questions(form: Form, path: Path) -> Iterator[Row]:
    """Rows of all tasks: id "TASK/PICTURE", image, prompt, metadata (category, label), see `reading`."""
    if form == "lines":
        return _from_lines(path)
    return _from_parquet(path) if form == "parquet" else _from_release(path)


def _from_lines(path: Path) -> Iterator[Row]:
    for entry in read_entries(path):
        yield _row(entry, entry.text("image", "question_id"))


def _from_parquet(place: Path) -> Iterator[Row]:
    """The files of the hub: question_id, image (bytes, path), question, answer, category."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install 'reverse-vlm[eval]'") from error
    for path in [place] if place.is_file() else sorted(place.glob("**/*.parquet")):
        file = pq.ParquetFile(path)
        if not set(_COLUMNS) <= set(file.schema_arrow.names):
            continue  # of something else
        number = 0
        for group in range(file.num_row_groups):
            for at, row in enumerate(file.read_row_group(group, columns=_COLUMNS).to_pylist()):
                number += 1
                made = _row(Entry(row, f"{path}, row {number}"), str(row["question_id"]))
                yield made | {"source": ParquetPicture(path, group, at)}


def _row(entry: Entry, image: str) -> Row:
    metadata = {"category": entry.text("category"), "label": entry.text("answer")}
    prompt = entry.text("question")
    return {"id": entry.id("question_id"), "image": image, "prompt": prompt, "metadata": metadata}


def _from_release(folder: Path) -> Iterator[Row]:
    """TASK/*.txt beside the pictures, or in folders of their own; a line is a question, a tab, Yes or No."""
    for task in sorted(path for path in folder.iterdir() if path.name in TASKS and path.is_dir()):
        apart = (task / "questions_answers_YN").is_dir()
        pictures = task / "images" if apart else task
        for text in sorted((task / "questions_answers_YN" if apart else task).glob("*.txt")):
            yield from _from_text(folder, task.name, text, pictures)


def _from_text(folder: Path, task: str, text: Path, pictures: Path) -> Iterator[Row]:
    """The questions of one text; none of a text that holds no pair of a question and Yes or No."""
    pairs = []
    for number, line in enumerate(read_text(text).splitlines(), 1):
        question, _, answer = line.strip().rpartition("\t")
        if question:
            pairs.append((number, question.strip(), answer.strip()))
    if not any(answer.lower() in ("yes", "no") for *_, answer in pairs):
        return
    image = next((path for end in _IMAGES if (path := pictures / (text.stem + end)).is_file()), None)
    name = image.name if image is not None else f"{text.stem}.jpg"
    for number, question, answer in pairs:
        if answer.lower() not in ("yes", "no"):
            raise DataError(f"{text}, line {number}: the answer must be Yes or No, got {answer[:40]!r}")
        row: dict[str, Any] = {"id": f"{task}/{name}", "image": f"{task}/{name}", "prompt": question}
        row["file"] = (image or pictures / name).relative_to(folder).as_posix()
        yield row | {"metadata": {"category": task, "label": answer}}
