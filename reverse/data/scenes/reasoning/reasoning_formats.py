"""Questions of the reasoning world as rows of published benchmarks: the same fields, files and places.

    tabmwp/problems_{train,dev,test}.json, tables/ID.png                                   arXiv 2209.14610
    ChartQA Dataset/{train,val,test}/{split}_{human,augmented}.json, png/, tables/         arXiv 2203.10244
    clevr-math/clevr-math-{train,val,test}.json, CLEVR_v1.0/images/{split}/                arXiv 2208.05358
    scienceqa/problems.json, pid_splits.json, images/{split}/ID/image.png                  arXiv 2209.09513

TabMWP gets the questions about tables; ChartQA those about charts (simple ones as "augmented", the others as
"human"); CLEVR-Math the sums and differences of scenes; ScienceQA the other choices, yes and no included.
Only questions about the number of an object in a scene are in none of these files. Split `shift` is called
test, because published readers know no other name.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from reverse.data.drafts.draft_record import tag_segments
from reverse.data.records.schema import make_record
from reverse.data.scenes.object_names import make_plural
from reverse.data.scenes.reasoning.rationale_steps import verify_caption
from reverse.data.scenes.reasoning.reasoning_annotator import (
    write_pointing,
    write_rationale,
    write_reasoning_caption,
)
from reverse.data.scenes.reasoning.reasoning_pictures import ReasoningPicture
from reverse.data.scenes.reasoning.reasoning_questions import QUESTION_KINDS, ReasoningQuestion
from reverse.tokens.spans import CN, SPAN

__all__ = [
    "find_published_places",
    "make_chartqa_row",
    "make_chartqa_table",
    "make_clevr_math_question",
    "make_replay_records",
    "make_scienceqa_problem",
    "make_tabmwp_problem",
    "name_published_split",
    "number_question",
]

_SIMPLE_KINDS = ("count", "parity", "more")  # of questions about charts: "augmented" in ChartQA
_CLEVR_KINDS = {"sum": "addition", "total": "addition", "left": "subtraction", "diff": "subtraction"}
_NODE: dict[str, Any] = {"value_inputs": []}  # a function of a program without arguments


def name_published_split(split: str, validation: str = "val") -> str:
    """Return the name of a split in published files."""
    return {"val": validation, "shift": "test"}.get(split, split)


def number_question(picture: ReasoningPicture, question: ReasoningQuestion) -> int:
    """Return the number of a question, from 1, unique within the split."""
    return picture.index * len(QUESTION_KINDS) + QUESTION_KINDS.index(question.kind) + 1


def find_published_places(picture: ReasoningPicture, question: ReasoningQuestion) -> list[str]:
    """Return the paths of a question's picture in the published files; empty if they do not hold the
    question.
    """
    split, number = name_published_split(picture.split), number_question(picture, question)
    if picture.kind == "table":
        return [f"tabmwp/tables/{number}.png"]
    places = []
    if picture.kind == "chart" and question.kind != "most":
        places.append(f"ChartQA Dataset/{split}/png/{picture.id}.png")
    if picture.kind == "scene" and question.kind in _CLEVR_KINDS:
        places.append(f"clevr-math/CLEVR_v1.0/images/{split}/{_name_clevr_image(picture)}.png")
    if _is_scienceqa(picture, question):
        places.append(f"scienceqa/images/{split}/{number}/image.png")
    return places


def make_tabmwp_problem(picture: ReasoningPicture, question: ReasoningQuestion) -> tuple[str, dict] | None:
    """Return id and problem of a question about a table, else None. Yes and no are options, as published."""
    if picture.kind != "table":
        return None
    choices = list(question.choices) or (["yes", "no"] if question.gold.kind == "yes_no" else None)
    answer = question.answer
    if question.choices:
        answer = question.choices[ord(answer) - ord("A")]
    rows = {make_plural(name): str(value) for name, value in picture.truth.items()}
    text = question.text.split("\nA. ")[0]
    answer_type = {"number": "integer_number", "yes_no": "boolean_text", "choice": "extractive_text"}
    return str(number_question(picture, question)), {
        "question": text,
        "choices": choices,
        "answer": answer,
        "unit": None,
        "table_title": None,
        "table": "\n".join(["Object | Number", *(f"{name} | {value}" for name, value in rows.items())]),
        "table_for_pd": {"Object": list(rows), "Number": list(rows.values())},
        "row_num": len(rows) + 1,
        "column_num": 2,
        "solution": write_rationale(question, picture.truth).replace(". ", ".\n"),
        "ques_type": "multi_choice" if choices else "free_text",
        "ans_type": answer_type[question.gold.kind],
        "grade": 1 + (len(question.names) > 1),
        "split": name_published_split(picture.split, "dev"),
    }


def make_chartqa_row(picture: ReasoningPicture, question: ReasoningQuestion) -> tuple[str, dict] | None:
    """Return "human" or "augmented" and the row of an open question about a chart; else None."""
    if picture.kind != "chart" or question.kind == "most":
        return None
    label = question.answer.capitalize()  # "Yes", "No"
    row = {"imgname": f"{picture.id}.png", "query": question.text, "label": label}
    return "augmented" if question.kind in _SIMPLE_KINDS else "human", row


def make_chartqa_table(picture: ReasoningPicture) -> str:
    """Return the data of a chart, as in `tables/NAME.csv`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([("Bar", "Height"), *picture.truth.items()])
    return stream.getvalue()


def make_clevr_math_question(picture: ReasoningPicture, question: ReasoningQuestion) -> dict | None:
    """Return the row of a sum or difference in a scene, without its `question_index`; else None."""
    if picture.kind != "scene" or question.kind not in _CLEVR_KINDS:
        return None
    template = _CLEVR_KINDS[question.kind]
    names = sorted(question.names, key=lambda name: -picture.truth[name])  # the larger number first
    program: list[dict[str, Any]] = [{"type": "scene", "inputs": [], **_NODE}]
    counted = []
    for name in names:
        start = len(program)
        program.append({"type": "filter_shape", "inputs": [0], "value_inputs": [name]})
        program.append({"type": "count", "inputs": [start], **_NODE})
        counted.append(start + 1)
    if question.kind == "left":
        program.append({"type": "choose", "inputs": [counted[0]], "value_inputs": [str(question.amount)]})
        counted.append(len(program) - 1)
    first = counted[0]
    for other in counted[1:]:
        program.append({"type": template, "inputs": [first, other], **_NODE})
        first = len(program) - 1
    image = _name_clevr_image(picture)
    return {
        "split": name_published_split(picture.split),
        "image_filename": f"{image}.png",
        "image_index": picture.index,
        "image": image,
        "question": question.text,
        "program": program,
        "answer": int(question.answer),
        "template_filename": f"{template}.json",
        "question_family_index": list(_CLEVR_KINDS).index(question.kind),
    }


def make_scienceqa_problem(picture: ReasoningPicture, question: ReasoningQuestion) -> tuple[str, dict] | None:
    """Return id and problem of a choice about a scene or chart, or of yes/no about a scene; else None."""
    if not _is_scienceqa(picture, question):
        return None
    choices = list(question.choices) or ["yes", "no"]
    answer = question.answer
    index = ord(answer) - ord("A") if question.choices else choices.index(answer)
    skill = {"most": "Compare amounts", "more": "Compare amounts", "parity": "Even and odd"}
    return str(number_question(picture, question)), {
        "question": question.text.split("\nA. ")[0],
        "choices": choices,
        "answer": index,
        "hint": "",
        "image": "image.png",
        "task": "closed choice" if question.choices else "yes or no",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "counting" if picture.kind == "scene" else "bar charts",
        "category": "Counting" if picture.kind == "scene" else "Bar charts",
        "skill": skill[question.kind],
        "lecture": "",
        "solution": write_rationale(question, picture.truth),
        "split": name_published_split(picture.split),
    }


def make_replay_records(picture: ReasoningPicture) -> list[dict[str, Any]]:
    """Make published instruct records that are always true: a caption, and pointing at every object."""
    caption = write_reasoning_caption(picture)
    image = f"images/{picture.id}.png"
    tagged = tag_segments(caption, verify_caption(caption, picture))
    records = [make_record(f"{picture.id}-caption", image, "Describe this image.", tagged)]
    for number, name in enumerate(picture.truth):
        request, answer = write_pointing(picture, name)
        before, places = answer.removesuffix(".").split(" at")
        tagged = f"{before} at{SPAN}{places}{CN}."
        records.append(make_record(f"{picture.id}-point{number}", image, request, tagged))
    return records


def _is_scienceqa(picture: ReasoningPicture, question: ReasoningQuestion) -> bool:
    if picture.kind == "chart":
        return question.kind == "most"
    return picture.kind == "scene" and question.gold.kind in ("choice", "yes_no")


def _name_clevr_image(picture: ReasoningPicture) -> str:
    return f"CLEVR_{name_published_split(picture.split)}_{picture.index:06d}"
