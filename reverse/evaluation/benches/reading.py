"""How the questions of each benchmark are read from its published files: one function a format.

A row is {"id", "image", "prompt", "metadata"}; "source" is there where the picture lies inside a parquet
file. `metadata` keeps what scoring groups by (label, category, type), never what a judge should not see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from reverse.evaluation.benches.spec import ParquetPicture, Row, read_rows

__all__ = ["MME_HALLUCINATION", "amber", "chair", "haloquest", "mme", "mmhal", "pope", "pope_set"]

MME_HALLUCINATION = ("existence", "count", "position", "color")
SETTINGS = ("random", "popular", "adversarial")
_ID = ("question_id", "id")
_TEXT = ("text", "query", "question")


def chair(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """chair-500.jsonl: question_id, image, text."""
    for row in read_rows(files["questions"]):
        yield _row(files["questions"], row, {})


def amber(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """Queries (id, image, query); the annotation of query n is entry n - 1 of the list."""
    truth: list[dict[str, Any]] = read_rows(files["annotations"]) if "annotations" in files else []
    for row in read_rows(files["questions"]):
        number = _first(files["questions"], row, _ID)
        known = isinstance(number, int) and 0 < number <= len(truth)
        annotation = truth[number - 1] if known else {}
        yield _row(files["questions"], row, {"type": annotation["type"]} if "type" in annotation else {})


def pope(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """LLaVA's file (unique ids, category) where it is there, else the three of POPE."""
    if "llava" not in files:
        yield from pope_set(root, files)
        return
    labels = {name: read_rows(files[name]) for name in SETTINGS if name in files}
    at: Counter[str] = Counter()
    for row in read_rows(files["llava"]):
        category = str(row.get("category", ""))
        beside = labels.get(category, [])
        metadata = {"category": category}
        if at[category] < len(beside):  # published in the same order, label by label
            label = beside[at[category]]
            if label.get("image") != row.get("image"):
                raise ValueError(
                    f"{files['llava']} and {files[category]} do not ask the same: question "
                    f"{row.get('question_id')!r} is about {row.get('image')!r}, its label about "
                    f"{label.get('image')!r}; fetch both again"
                )
            metadata["label"] = label["label"]
        at[category] += 1
        yield _row(files["llava"], row, metadata)


def pope_set(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """POPE's own files, one a setting: question_id (from 1 in each), image, text, label."""
    for setting in SETTINGS:
        for row in read_rows(files[setting]):
            made = _row(files[setting], row, {"category": setting, "label": row.get("label")})
            yield made | {"id": f"{setting}/{made['id']}"}


def mme(tasks: tuple[str, ...] | None) -> Callable[[Path, Mapping[str, Path]], Iterator[Row]]:
    """Reader of the tasks (None: all), from JSON lines, parquet files or the released folders."""

    def read(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
        if "lines" in files:
            rows = _mme_lines(files["lines"])
        elif "parquet" in files:
            rows = _mme_parquet(files["parquet"])
        else:
            rows = _mme_folders(files["release"])
        times: Counter[str] = Counter()
        for row in rows:
            if tasks is None or row["metadata"]["category"] in tasks:
                times[row["id"]] += 1  # both questions of a picture have its id
                yield row | {"id": f"{row['id']}#{times[row['id']]}"}

    return read


def mmhal(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """response_template.json: the picture is the last part of image_src."""
    for number, row in enumerate(read_rows(files["questions"])):
        image = PurePosixPath(_first(files["questions"], row, ("image_src",))).name
        keys = ("question_type", "question_topic")
        metadata = {key: row[key] for key in keys if key in row}
        prompt = _first(files["questions"], row, ("question",))
        yield {"id": number, "image": image, "prompt": prompt, "metadata": metadata}


def haloquest(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """haloquest-eval.jsonl: question_id, image, text, answer, hallucination_type, image_type."""
    for row in read_rows(files["questions"]):
        metadata: dict[str, Any] = {
            key: row[key] for key in ("hallucination_type", "image_type") if key in row
        }
        yield _row(files["questions"], row, metadata)


def _row(path: Path, row: Mapping[str, Any], metadata: Mapping[str, Any]) -> Row:
    number = _first(path, row, _ID)
    image, prompt = str(_first(path, row, ("image",))), str(_first(path, row, _TEXT))
    return {"id": number, "image": image, "prompt": prompt, "metadata": dict(metadata)}


def _first(path: Path, row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        if key in row:
            return row[key]
    raise ValueError(f"{path}: an entry has no {' or '.join(keys)}, only {', '.join(row)}: fetch it again")


def _mme_lines(path: Path) -> Iterator[Row]:
    for row in read_rows(path):
        yield _row(path, row, {"category": row.get("category"), "label": row.get("answer")})


def _mme_parquet(folder: Path) -> Iterator[Row]:
    """The files of the hub: question_id, image (bytes, path), question, answer, category."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("parquet files need pyarrow: pip install 'reverse-vlm[eval]'") from error
    for path in sorted(folder.glob("**/*.parquet")):
        file = pq.ParquetFile(path)
        columns = ["question_id", "question", "answer", "category"]
        for group in range(file.num_row_groups):
            for at, row in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                made = _row(path, row | {"image": row["question_id"]}, {})
                metadata = {"category": row["category"], "label": row["answer"]}
                yield made | {"metadata": metadata, "source": ParquetPicture(path, group, at)}


def _mme_folders(folder: Path) -> Iterator[Row]:
    """MME_Benchmark_release_version: TASK/*.txt beside the pictures, or in folders of their own."""
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        apart = (task / "questions_answers_YN").is_dir()
        for text in sorted((task / "questions_answers_YN" if apart else task).glob("*.txt")):
            pictures = task / "images" if apart else task
            named = [pictures / (text.stem + end) for end in (".jpg", ".png", ".jpeg")]
            image = next((path for path in named if path.is_file()), None)
            if image is None:
                raise FileNotFoundError(f"{text} has no picture of its name in {pictures}")
            for line in text.read_text(encoding="utf-8").splitlines():
                question, _, answer = line.strip().rpartition("\t")
                if question:
                    place = image.relative_to(folder).as_posix()
                    metadata = {"category": task.name, "label": answer}
                    identity = f"{task.name}/{image.name}"
                    yield {"id": identity, "image": identity, "file": place, "prompt": question,
                           "metadata": metadata}  # fmt: skip
