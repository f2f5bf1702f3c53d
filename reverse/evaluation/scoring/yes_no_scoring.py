"""Yes or no: how the published scripts read an answer, a strict reading beside them, and POPE.

    read_pope("There is not a dog.")      # "no"          read_amber("His eyes are blue.")     # "yes" (!)
    strict("His eyes are blue.")          # "other"       strict("No, it isn't.")              # "no"

The published readings look for letters: POPE's takes whatever does not deny for yes, empty answers too;
AMBER's finds "yes" in "eyes" and "no" in "snow"; MME's looks at four letters. `strict` takes off reasoning,
JSON and markup (`reverse.evaluation.reading.markup`) and looks for words; what is not English it does not
read, and says so ("unread"). Where the two disagree on any answer, every figure is reported in both readings,
the strict one as `strict_…`.

POPE (https://arxiv.org/abs/2305.10355): accuracy, precision, recall, F1 ("yes" positive), share of yes, for
each setting and their mean. Differences from the published script, each tested: answers are matched with
their labels by question and picture, not by their order; the interval of the mean resamples within the
settings and is not taken from the settings' draws poured together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.benchmarks.picture_lookup import Pictures, clear_path
from reverse.evaluation.reading.english import is_english
from reverse.evaluation.reading.markup import LONGEST, plain
from reverse.evaluation.scoring.scored_rows import Answer, allowed_missing, listed, locate, make_table
from reverse.evaluation.stats.scored_tables import Metric, Table, f1, macro, ratio
from reverse.files.cell_values import read_id
from reverse.files.entries import read_entries

__all__ = ["Reading", "read_amber", "read_mme", "read_pope", "score", "strict"]

Reading = Literal["yes", "no", "other", "empty", "unread"]

# ---------------------------------------------------------------------- readings
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE = re.compile(r"[.!?\n]")
_YES = frozenset({"yes", "yeah", "yep", "yup"})
_NO = frozenset({"no", "nope"})
_DENIALS = frozenset({"not", "cannot", "none", "never", "neither", "nor", "without", "nothing", "nobody"})


def read_pope(text: str) -> Reading:
    """As LLaVA's script: in the text before the first full stop, commas taken out, one of the words (between
    single spaces) "No", "not", "no" means no; whatever else, nothing included, means yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"


def read_amber(text: str) -> Reading:
    """As REVERSE's script: the letters "yes" anywhere mean yes, else the letters "no" mean no."""
    lowered = text.lower()
    return "yes" if "yes" in lowered else "no" if "no" in lowered else "other"


def read_mme(text: str) -> Reading:
    """As MME's tool: "yes", else "no", among the first four characters."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def strict(text: str) -> Reading:
    """By words, without reasoning and markup: the first yes, no or denial (not, n't, none, without …) of the
    first sentence; else the first later sentence that begins with yes or no.

    "empty" where there is no word at all, "other" where neither is said, "unread" for another language than
    English and for an answer of more than `LONGEST` characters.
    """
    said = plain(text)
    if len(said) > LONGEST:
        return "unread"
    lowered = said.lower().replace("’", "'")
    sentences = [words for part in _SENTENCE.split(lowered) if (words := _WORD.findall(part))]
    if not sentences:
        return "empty"
    if sentences[0][0] not in _YES and not is_english([word for words in sentences for word in words]):
        return "unread"
    for word in sentences[0]:
        if word in _YES:
            return "yes"
        if word in _NO or word in _DENIALS or word.endswith("n't"):
            return "no"
    for first, *_ in sentences[1:]:
        if first in _YES | _NO:
            return "yes" if first in _YES else "no"
    return "other"


# ---------------------------------------------------------------------- counts
def confusion(
    readings: Sequence[Reading], labels: Sequence[str], positive: str, prefix: str = ""
) -> dict[str, np.ndarray]:
    """0/1 columns hit, false_alarm, miss, right, said (the positive), none (neither yes nor no), unread.

    An answer that is neither, or unread, is wrong: a miss where the label is positive.
    """
    said = np.array(readings, dtype=object)
    label = np.array(labels, dtype=object)
    columns = {
        "hit": (said == positive) & (label == positive),
        "false_alarm": (said == positive) & (label != positive),
        "miss": (said != positive) & (label == positive),
        "right": said == label,
        "said": said == positive,
        "none": np.isin(said, ["other", "empty"]),
        "unread": said == "unread",
    }
    return {prefix + name: column.astype(float) for name, column in columns.items()}


def quartet(prefix: str, suffix: str = "", title: str = "") -> list[Metric]:
    """Accuracy, precision, recall, F1 over the columns `prefix…suffix`, named `prefix…suffix` as well."""

    def column(name: str) -> str:
        return f"{prefix}{name}{suffix}"

    return [
        ratio(column("accuracy"), column("right"), column("asked"), "high", title=f"{title}accuracy"),
        ratio(column("precision"), column("hit"), column("said"), "high", title=f"{title}precision"),
        ratio(column("recall"), column("hit"), column("positive"), "high", title=f"{title}recall"),
        f1(column("f1"), column("hit"), column("false_alarm"), column("miss"), title=f"{title}F1"),
    ]


def by_group(
    columns: Mapping[str, np.ndarray], groups: Sequence[str], wanted: Iterable[str], prefix: str = ""
) -> dict[str, np.ndarray]:
    """The columns again for each group, `name@group`, zero in other groups' rows."""
    of = np.array(groups, dtype=object)
    found = {}
    for group in wanted:
        inside = (of == group).astype(float)
        for name, column in columns.items():
            if name.startswith(prefix):
                found[f"{name}@{group}"] = column * inside
    return found


def both_readings(
    texts: Sequence[str], labels: Sequence[str], positive: str, published: Callable[[str], Reading]
) -> tuple[dict[str, np.ndarray], int]:
    """Columns of the published reading, of the strict one (`strict_…`); on how many answers they differ."""
    first, second = [published(text) for text in texts], [strict(text) for text in texts]
    asked = {
        "asked": np.ones(len(texts)),
        "positive": (np.array(labels, dtype=object) == positive).astype(float),
    }
    columns = confusion(first, labels, positive) | asked
    columns |= confusion(second, labels, positive, "strict_")
    columns |= {f"strict_{name}": column for name, column in asked.items()}
    # POPE's reading has no "other": an answer without yes or no counts as a difference only if it is scored
    # so.
    return columns, sum(
        a != b and not {a, b} <= {"other", "empty"} for a, b in zip(first, second, strict=True)
    )


def unanswered_metrics(columns: Mapping[str, np.ndarray]) -> list[Metric]:
    """How many answers the strict reading took for neither yes nor no, and how many it could not read."""
    made = [ratio("no_answer", "strict_none", "answers", "low", title="neither yes nor no (strict)")]
    if columns["strict_unread"].any():
        made.append(
            ratio(
                "not_read",
                "strict_unread",
                "answers",
                "low",
                title="not read: no English, or too long (strict)",
            )
        )
    return made


# ---------------------------------------------------------------------- POPE
PLACES = (  # as running looks for them
    "pope/coco_pope", "pope/coco", "pope/aokvqa", "pope/gqa", "pope",
    "coco_pope", "coco", "aokvqa", "gqa", ".",
)  # fmt: skip
_SETTINGS = ("random", "popular", "adversarial")
_NAME = re.compile(r"(?:(.+)_)?pope_(?:seem_)?(random|popular|adversarial)")
_STEM = {"pope": "coco", "pope-aokvqa": "aokvqa", "pope-gqa": "gqa"}


def score(
    answers: Sequence[Answer], truth: str | Path, partial: bool = False, benchmark: str = "pope"
) -> tuple[Table, list[Metric]]:
    """One row an answer; parts are the settings. `benchmark`: pope (COCO), pope-aokvqa or pope-gqa.

    Raises FileNotFoundError without label files, ValueError for answers that match no label.
    """
    labels = _labels(truth, _STEM[benchmark])
    questions = _question_file(truth)
    pictures = {
        setting: Pictures(dict.fromkeys(image for image, _ in asked)) for setting, asked in labels.items()
    }
    parts, said, labels_of = [], [], []
    used: dict[str, Counter[tuple[str, str]]] = {setting: Counter() for setting in labels}
    unknown: list[str] = []
    for answer in answers:
        setting, image, question = _asked(answer, questions, labels)
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
        raise DataError(f"{len(unknown)} answers match no label under {truth}: {listed(unknown)}; {what}")
    _complete(labels, used, allowed_missing(answers, partial))
    columns, differ = both_readings(said, labels_of, "yes", read_pope)
    names = [setting for setting in _SETTINGS if setting in parts]
    columns |= by_group(columns, parts, names)
    table = make_table(benchmark, answers, columns, parts=parts, notes={"readings_differ": differ})
    metrics = _metrics("", names)
    if differ:
        metrics += _metrics("strict_", names)
        metrics += unanswered_metrics(columns)
    return table, metrics


def _metrics(prefix: str, settings: Sequence[str]) -> list[Metric]:
    title = "strict: " if prefix else ""
    share = ratio(
        f"{prefix}yes_share", f"{prefix}said", f"{prefix}asked", "neither", title=f"{title}share of yes"
    )
    made = [macro(metric) for metric in quartet(prefix, title=title)] + [macro(share)]
    if len(settings) > 1:
        for setting in settings:
            made += quartet(prefix, f"@{setting}", f"{title}{setting} ")
            name, said, asked = (f"{prefix}{c}@{setting}" for c in ("yes_share", "said", "asked"))
            made.append(ratio(name, said, asked, "neither", title=f"{title}{setting} share of yes"))
    return made


def _labels(truth: str | Path, stem: str) -> dict[str, dict[tuple[str, str], list[str]]]:
    """setting: (picture, question): its labels, once for each time it is asked."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    root = Path(truth)
    for place in PLACES:
        for path in locate(root, (place,), ["*pope_*.json"]):
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


def _question_file(truth: str | Path) -> dict[str, dict[str, Any]]:
    """LLaVA's question file, where it is there: which setting a question id belongs to."""
    found = locate(truth, PLACES, ["*pope_test*.jsonl"])
    entries = [entry for path in found for entry in read_entries(path) if "category" in entry.row]
    return {str(read_id(entry.id("question_id"))): entry.row for entry in entries}


def _asked(
    answer: Answer, questions: Mapping[str, dict[str, Any]], labels: Mapping[str, Any]
) -> tuple[str, str, str]:
    """Setting, picture, question of an answer; the setting is empty where nothing tells it."""
    row = questions.get(answer.question_id, {})
    setting = str(answer.metadata.get("category") or row.get("category") or "")
    if not setting:
        before = answer.question_id.partition("/")[0]
        setting = before if before in labels else next(iter(labels)) if len(labels) == 1 else ""
    image = answer.path or str(row.get("image", ""))
    return (setting, *_key(image, answer.prompt or str(row.get("text", ""))))


def _key(image: str, question: str) -> tuple[str, str]:
    """The picture and the question itself, without the request for one word."""
    asked = question.partition("?")[0]
    return clear_path(image), " ".join(asked.lower().split())


def _complete(
    labels: Mapping[str, Mapping[tuple[str, str], list[str]]],
    used: Mapping[str, Counter[tuple[str, str]]],
    allowed: float,
) -> None:
    """Each question of the settings that were answered once, no more; at most `allowed` of them not."""
    for setting, asked in labels.items():
        if not used[setting]:
            continue
        twice = [key for key, count in used[setting].items() if count > len(asked[key])]
        if twice:
            raise DataError(
                f"{setting}: {len(twice)} questions are answered more often than asked: "
                + listed(f"{question!r} about {image}" for image, question in twice)
            )
        missing = [key for key, several in asked.items() if used[setting][key] < len(several)]
        if len(missing) > allowed:
            raise DataError(
                f"{setting}: {len(missing)} of {len(asked)} questions have no answer: "
                + listed(f"{question!r} about {image}" for image, question in missing)
                + "; start `reverse eval` again to answer them, or give --partial to score the others"
            )
