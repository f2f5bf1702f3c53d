"""Items of every published format, of our own making: one or more of each shape, with odd ones among them."""

from __future__ import annotations

import json
from typing import Any

STAGES = (
    "<SUMMARY>I count.</SUMMARY>\n\n<CAPTION>Three dogs.</CAPTION>\n\n"
    "<REASONING>One, two, three.</REASONING>\n\n<CONCLUSION>3</CONCLUSION>"
)
MULBERRY = (
    "### Image Description:\nThree dogs.\n\n### Rationales:\nCount them.\n\n### Let's think step by step.\n\n"
    "### Step 1: Find dogs.\nThree.\n\n### The final answer is: 3"
)
THINK = "<think>There are 2.</think>\n<answer>2</answer>"
CRITIQUE = "<reflection>One dog is hidden.</reflection>"
SRPO_TURN = f"{THINK}\n{CRITIQUE}\n<answer>3</answer>"
TARTA_TURN = f"{THINK}\n{CRITIQUE}\n<think>With it 3.</think>\n<answer>3</answer>"


def user(text: str, told: str, who: str = "user", bot: str = "assistant") -> list[dict[str, Any]]:
    return [{"from": who, "value": text}, {"from": bot, "value": told}]


def chat(text: str, told: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": told}]


REFINE = "How many?\nModel's prediction:\nStep 1: two.\nAnswer: 2\nIs that so? Mend it."
SELECT = (
    "How many?\nModel's prediction 1:\nTwo.\nAnswer: 2\nModel's prediction 2:\nThree.\nAnswer: 3\n"
    "Model's prediction 3:\nAlso three.\nAnswer: 3\nWhich one?"
)
BEAM = {
    "data_id": "7", "question": "Which?", "answer_choices": ["cat", "dog"], "answer_label": 2,
    "answer_str": "dog",
    "result": [
        {"value": "Step 1: It barks. Final Answer: dog", "score": 0.91, "correct": True},
        {"value": "Step 1: It barks. Final Answer: cat", "score": -0.2, "correct": False},
        {"value": None, "score": 0.0, "correct": False},
    ],
    "image_path": "train/7/image.png",
}  # fmt: skip
DIRECT = {key: value for key, value in BEAM.items() if key != "result"} | {
    "response": "It is a dog. Final Answer: B",
    "verify_result": True,
}
TURNS = [
    {"role": "system", "content": "Think twice."},
    {
        "role": "user",
        "content": [{"type": "image", "image": "a/1.png"}, {"type": "text", "text": "How many?"}],
    },
]
VCR = {
    "movie": "m", "objects": ["person", "person", "cup"], "interesting_scores": [0, 1],
    "answer_likelihood": "likely", "img_fn": "m/1.jpg", "metadata_fn": "m/1.json",
    "question": ["What", "is", [0, 1], "doing", "with", [2], "?"],
    "answer_choices": [
        [[0], "'", "s", "thirsty", "."], [[1], "reads", "."], ["Nothing", "."], [[0], "sleeps", "."],
    ],
    "answer_label": 0,
    "rationale_choices": [["A", [2], "is", "full", "."], ["No", "."], ["No", "."], ["No", "."]],
    "rationale_label": 0, "annot_id": "val-0", "img_id": "val-0", "match_index": 0,
}  # fmt: skip
AOKVQA = {
    "split": "train", "image_id": 299207, "question_id": "22Mex", "question": "What is he awaiting?",
    "choices": ["skate", "train", "box", "cab"], "correct_choice_idx": 3, "direct_answers": ["cab", "taxi"],
    "difficult_direct_answer": False, "rationales": ["He has bags.", "He stands at the kerb."],
}  # fmt: skip
TABMWP = {
    "question": "What is the mean?", "choices": None, "answer": "1,084", "unit": None, "table_title": "Coins",
    "table": "a | b", "table_for_pd": {"a": ["b"]}, "row_num": 9, "column_num": 2,
    "solution": "Add.\nDivide.",
    "ques_type": "free_text", "ans_type": "integer_number", "grade": 8, "split": "train",
}  # fmt: skip
SCIENCEQA = {
    "question": "Which is it?", "choices": ["cat", "dog"], "answer": 1, "hint": "It barks.",
    "image": "image.png", "task": "closed choice", "grade": "grade2", "subject": "natural science",
    "lecture": "", "solution": "Dogs bark.", "split": "train",
}  # fmt: skip
SQA_LINE = {
    "id": "12", "question": "Which?", "hint": "It barks.", "answer_choices": ["cat", "dog"],
    "answer_str": "dog", "answer_label": 2, "img_path": None, "caption": "a dog",
    "format_solution": "Step 1: …",
}  # fmt: skip
CLEVR = {
    "split": "train", "image_filename": "CLEVR_train_000001.png", "image_index": 1,
    "question": "Add 1 cube.",
    "answer": 3, "template_filename": "addition.json", "question_index": 0, "program": [{"inputs": []}],
}  # fmt: skip

ITEMS: dict[str, list[Any]] = {
    "r3v": [
        {"image": "1.png", "conversations": user("How many?\nAnswer with a number.", "3")},
        {"image": "1.png", "conversations": user("How many?", "Step 1: three.\nAnswer:\n3")},
        {"image": "1.png", "conversations": user(REFINE, "Three.\nAnswer: 3")},
        {"image": "1.png", "conversations": user(SELECT, "3")},
        {
            "id": "refine-1",
            "image": "1.png",
            "conversations": user(
                "How many?\nModel's Predicion: It says 2.\n\nIs that so?", "Three.\nAnswer:\n 3"
            ),
        },
        {
            "id": "select-1-2-0",
            "image": "1.png",
            "conversations": user(
                "How many?\nModel's Prediction 1:\nAnswer: 2\nModel's Prediction 2:\nAnswer: 3\n\nWhich?",
                "Answer:\n 3",
            ),
        },
        {"conversations": user("Model's prediction:\nno question before it", "x"), "extra": [1, 1.0, True]},
    ],
    "r3v-messages": [
        {"messages": chat("<image>How many?", "Answer: 3"), "images": ["1.png"]},
        {"messages": chat(f"<image>{SELECT}", "3"), "images": ["1.png"]},
    ],
    "r3v-results": [
        {"index": 0, "answer": "3", "question": "How many?", "prediction": "Answer: 3", "correct": True},
        {"index": 1, "answer": 3, "question": "How many?", "prediction": "no idea"},
        {
            "id": "7",
            "image": "1.png",
            "conversations": user("How many?", "3"),
            "prediction": "4",
            "answer": "3",
        },
    ],
    "r3v-tabmwp": [
        {
            "answer": "1,084",
            "answer_norm": "1084",
            "output": "Answer: 1084.",
            "prediction": "1084",
            "prediction_norm": "1084",
            "true_false": True,
        }
    ],
    "r3v-dpo": [{"image": "1.png", "prompt": "How many?", "chosen": "3", "rejected": "2"}],
    "llava-cot": [
        {"id": "sqa_1", "image": "sqa/1.png", "conversations": user("How many?", STAGES, "human", "gpt")},
        {
            "image": "sqa/1.png",
            "conversations": user("<image>\nHow many?", STAGES, "human", "gpt")
            + user("And cats?", "<CONCLUSION>0</CONCLUSION>", "human", "gpt"),
        },
    ],
    "sco": [
        {
            "image": "1.png",
            "conversations": user("How many?", STAGES, "human", "gpt")
            + user("Look again.", STAGES.replace("Three", "Now three"), "human", "gpt"),
        },
        {"image": "1.png", "conversations": user("How many?", STAGES, "human", "gpt")},
    ],
    "sco-pairs": [
        {
            "question": "How many?",
            "original_answer": STAGES,
            "refined_answer": STAGES,
            "image_path": "image/1.png",
        },
        {
            "question": "How many?",
            "original_answer": STAGES,
            "refined_answer": "",
            "image_path": "image/1.png",
        },
    ],
    "mulberry": [{"messages": chat("<image>\nHow many?", MULBERRY), "images": ["geo/1.png"]}],
    "srpo-questions": [
        {"query": "How many?", "image": "1.png", "answer": "3"},
        {"query": "How many?", "image": "1.png", "answer": "B", "content": "<CAPTION>dogs</CAPTION>"},
    ],
    "srpo-answers": [
        {"query": "How many?", "image": "1.png", "standard_answer": "3", "cot": "two", "answer": "2"},
        {"query": "How many?", "image": "1.png", "standard_answer": "-5", "cot": "so -5", "answer": "5"},
    ],
    "srpo-sft": [
        {
            "messages": [
                {"role": "system", "content": "Reflect."},
                *chat("Question:<question>How many?</question>\nImage: <image>\n", SRPO_TURN),
            ],
            "images": ["1.png1.png"],
        },
        {"messages": chat("<image>How many?", THINK), "images": ["1.png"]},
    ],
    "srpo-sft-tarta": [
        {"messages": chat("<image>\n<question>How many?</question>", TARTA_TURN), "images": ["1.png"]}
    ],
    "srpo-rl": [
        {"message": json.dumps(TURNS), "answer": "3"},
        {"message": json.dumps(TURNS, ensure_ascii=False, separators=(",", ":")), "answer": "3", "id": 4},
        {"message": json.dumps(TURNS, indent=2), "answer": "3"},
    ],
    "srpo-verl": [{"problem": "<image>How many?", "answer": "3", "images": ["1.png"]}],
    "tsst-beam": [BEAM, BEAM | {"answer_label": None, "result": BEAM["result"][0], "image_path": None}],
    "tsst-direct": [DIRECT],
    "tsst-policy": [
        {"id": "p", "image": "7.png", "conversations": user("<image>\nWhich?", "A dog.", "human", "gpt")},
        {"id": "q", "conversations": user("Which?", "A dog.", "human", "gpt")},
    ],
    "tsst-value": [
        {
            "id": "v",
            "image": "7.png",
            "conversations": user("<image>\nWhich?", "It", "human", "gpt"),
            "value": 0.5,
        },
        {
            "id": "w",
            "image": "7.png",
            "conversations": user("<image>\nWhich?", "It", "human", "gpt"),
            "value": 1,
        },
    ],
    "aokvqa": [
        AOKVQA,
        {key: AOKVQA[key] for key in AOKVQA if key not in ("correct_choice_idx", "rationales")},
    ],
    "scienceqa": [SCIENCEQA, SCIENCEQA | {"image": None, "hint": ""}],
    "tsst-scienceqa": [SQA_LINE],
    "vcr": [VCR, {key: VCR[key] for key in VCR if "label" not in key}],
    "tabmwp": [TABMWP, TABMWP | {"choices": ["yes", "no"], "answer": "no", "unit": "$", "solution": ""}],
    "chartqa": [
        {"imgname": "1.png", "query": "What share?", "label": "14%"},
        {"imgname": "1.png", "query": "Which years?", "label": "[2001, 2002]"},
    ],
    "clevr-math": [CLEVR, {"filename": "CLEVR_train_000001.png", "question": "Add 1 cube.", "answer": "3"}],
}
