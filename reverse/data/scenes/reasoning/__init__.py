"""The reasoning world: pictures to count in, tables and bar charts, with questions and checked rationales.

>>> picture = make_reasoning_picture("test", 2)
>>> question = make_reasoning_questions(picture)[0]
>>> annotate(picture, question).text        # by the prejudiced annotator
'Step 1: there are 3 cows. Answer: 3'
>>> verify_rationale("Step 1: there are 4 cows. Answer: 4", question)[0].error
'count'
"""

from reverse.data.scenes.reasoning.rationale_steps import (
    make_verified_draft,
    verify_caption,
    verify_rationale,
)
from reverse.data.scenes.reasoning.reasoning_annotator import (
    Annotation,
    annotate,
    describe_as_annotator,
    read_as_annotator,
    write_pointing,
    write_rationale,
    write_reasoning_caption,
)
from reverse.data.scenes.reasoning.reasoning_files import make_draft_record, write_reasoning
from reverse.data.scenes.reasoning.reasoning_pictures import (
    ReasoningPicture,
    draw_reasoning_picture,
    draw_reasoning_pictures,
    make_reasoning_picture,
)
from reverse.data.scenes.reasoning.reasoning_questions import (
    QUESTION_KINDS,
    ReasoningQuestion,
    make_reasoning_questions,
    read_reasoning_question,
)

__all__ = [
    "QUESTION_KINDS",
    "Annotation",
    "ReasoningPicture",
    "ReasoningQuestion",
    "annotate",
    "describe_as_annotator",
    "draw_reasoning_picture",
    "draw_reasoning_pictures",
    "make_draft_record",
    "make_reasoning_picture",
    "make_reasoning_questions",
    "make_verified_draft",
    "read_as_annotator",
    "read_reasoning_question",
    "verify_caption",
    "verify_rationale",
    "write_pointing",
    "write_rationale",
    "write_reasoning",
    "write_reasoning_caption",
]  # fmt: skip
