"""A tiny file of our own in the published form of each graded benchmark, with a picture a question.

`QUESTIONS[name]` is how many questions there are; `RIGHT[name]` an answer to the first that is right,
`WRONG[name]` one that is wrong.
"""

import base64
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from reverse.data.scenes import make_scene, render_scene


def picture(number=0):
    stream = io.BytesIO()
    Image.fromarray(render_scene(make_scene("test", number))).save(stream, "PNG")
    return stream.getvalue()


def write_picture(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def stored(number=0):
    return {"bytes": picture(number), "path": f"{number}.png"}


def write_parquet(path, rows, group=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def tabmwp(root):
    rows = {
        "7": {"question": "What is the mean?", "choices": None, "answer": "1,200", "unit": "$",
              "ques_type": "free_text", "ans_type": "integer_number", "split": "test"},
        "9": {"question": "Which is larger?", "choices": ["shop", "stall"], "answer": "stall", "unit": None,
              "ques_type": "multi_choice", "ans_type": "extractive_text", "split": "test"},
    }  # fmt: skip
    write_json(root / "tabmwp/problems_test.json", rows)
    for name in rows:
        write_picture(root / f"tabmwp/tables/{name}.png")


def chartqa(root):
    for part, label in (("human", "40"), ("augmented", "Yes")):
        rows = [{"imgname": f"{part}.png", "query": "What is the blue bar?", "label": label}]
        write_json(root / f"chartqa/test/test_{part}.json", rows)
        write_picture(root / f"chartqa/test/png/{part}.png")


def clevr_math(root):
    rows = [
        {"question": "Take away the cube. How many are left?", "answer": 3, "image_filename": "C_1.png",
         "template_filename": "subtraction.json", "split": "test"},
        {"question": "Add a ball. How many are there?", "answer": 5, "image_filename": "C_1.png",
         "template_filename": "addition.json", "split": "test"},
    ]  # fmt: skip
    write_json(root / "clevr-math/clevr-math-test.json", {"info": {}, "questions": rows})
    write_picture(root / "clevr-math/CLEVR_v1.0/images/test/C_1.png")


def geoqa(root):
    for name, label in (("12", 1), ("3", 0)):
        row = {"subject": "如图，角度是多少？", "choices": ["30°", "60°", "90°", "120°"], "label": label,
               "answer": "解：因为…"}  # fmt: skip
        write_json(root / f"geoqa/GeoQA3/json/{name}.json", row)
        write_picture(root / f"geoqa/GeoQA3/image/{name}.png")


def mathvista(root):
    common = {"unit": None, "image": "images/1.jpg", "decoded_image": stored()}
    rows = [
        {"pid": "1", "question": "How high?", "choices": None, "precision": 1.0, "answer": "1.2",
         "question_type": "free_form", "answer_type": "float", "metadata": {"task": "geometry"}, **common},
        {"pid": "2", "question": "Which one?", "choices": ["red", "blue"], "precision": None,
         "answer": "blue",
         "question_type": "multi_choice", "answer_type": "text", "metadata": {"task": "figures"}, **common},
    ]  # fmt: skip
    write_parquet(root / "mathvista/data/testmini-00000-of-00001.parquet", rows)


def mathverse(root):
    question = "Find the angle.\nChoices:\nA:30°\nB:60°\nC:90°\nD:120°"
    rows = [
        {"sample_index": "1", "problem_index": "1", "problem_version": "Text Dominant", "question": question,
         "question_for_eval": question, "answer": "B", "question_type": "multi-choice", "image": stored()},
        {"sample_index": "2", "problem_index": "1", "problem_version": "Vision Only", "question": "",
         "question_for_eval": "Find x.", "answer": "\\frac{1}{2}", "question_type": "free-form",
         "image": stored(1)},
    ]  # fmt: skip
    write_parquet(root / "mathverse/testmini.parquet", rows, group=2)


def mathvision(root):
    rows = [
        {"id": "4", "question": "How many digits?\n<image1>", "options": [], "answer": "6",
         "image": "images/4.jpg", "level": 1, "subject": "counting"},
        {"id": "6", "question": "Which kitten?\n<image1>", "options": ["A", "B", "C"], "answer": "C",
         "image": "images/6.jpg", "level": 3, "subject": "logic"},
    ]  # fmt: skip
    write_lines(root / "mathvision/data/test.jsonl", rows)
    for name in ("4", "6"):
        write_picture(root / f"mathvision/images/{name}.jpg")


def olympiadbench(root):
    row = {"id": 2231, "context": None, "question": "Turbo sits at <img_31>, then at <img_32>. How far?",
           "final_answer": ["$\\frac{1}{2}$"], "answer_type": "Numerical", "error": None,
           "unit": None}  # fmt: skip
    write_json(root / "olympiadbench/data/OE_MM_maths_en_COMP.json", [row])
    for number in (31, 32):
        write_picture(root / f"olympiadbench/images/{number}.jpg", number)


def mmk12(root):
    question = "<image>Which force?\nA. 1 N\nB. 2 N\nC. 3 N\nD. 4 N"
    rows = [{"id": f"t{i}", "question": question, "answer": "C", "subject": "physics", "image": stored()}
            for i in range(2)]  # fmt: skip
    write_parquet(root / "mmk12/data/test-00000-of-00001.parquet", rows)
    write_parquet(root / "mmk12/data/train-00000-of-00001.parquet", rows)


def mmmu(root):
    row = {"id": "validation_Art_1", "question": "Which fits <image 1>?", "options": "['<image 2>', 'none']",
           "answer": "A", "question_type": "multiple-choice", "image_1": stored(),
           "image_2": stored(1)}  # fmt: skip
    write_parquet(root / "mmmu/Art/validation-00000-of-00001.parquet", [row])
    row = {"id": "validation_Basic_Science_1", "question": "How much, see <image 1>?", "options": "[]",
           "answer": "['4.5', '4,5']", "question_type": "open", "image_1": stored(),
           "image_2": None}  # fmt: skip
    write_parquet(root / "mmmu/Basic_Science/validation-00000-of-00001.parquet", [row])


def mmstar(root):
    question = "What is it?\nOptions: A: a cup, B: a dog, C: a hat, D: a car"
    rows = [{"index": i, "question": question, "answer": "B", "category": "coarse", "image": picture(i)}
            for i in range(3)]  # fmt: skip
    write_parquet(root / "mmstar/mmstar.parquet", rows, group=2)


def ai2d(root):
    rows = [{"question": "What eats grass?", "options": ["fox", "hare", "owl", "elm"], "answer": "1",
             "image": stored()}]  # fmt: skip
    write_parquet(root / "ai2d/data/test-00000-of-00001.parquet", rows)


def mmbench(root):
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    image = base64.b64encode(picture()).decode()
    rows = [
        ["241", "Which is right?", '"The hint\nhas two lines, and a ""word"""', "yes", "no", "", "", "B",
         "logic", image],
        ["1000241", "Which is right?", "", "no", "yes", "", "", "A", "logic", "241"],
    ]  # fmt: skip
    path = root / "mmbench/MMBench_DEV_EN.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [names, *rows]), encoding="utf-8")


def scienceqa(root):
    row = {"question": "Which is a mammal?", "choices": ["newt", "cow"], "answer": 1, "hint": "See below.",
           "image": "image.png", "subject": "natural science", "split": "test"}  # fmt: skip
    problems = {"5": row, "6": row | {"image": None}, "8": row | {"split": "train"}}
    write_json(root / "scienceqa/problems.json", problems)
    write_json(root / "scienceqa/pid_splits.json", {"train": ["8"], "test": ["5", "6"]})
    write_picture(root / "scienceqa/images/test/5/image.png")


def aokvqa(root):
    row = {"question_id": "22MexNk", "image_id": 299207, "question": "What is the man by?",
           "choices": ["trucks", "boats", "carts", "elephants"], "correct_choice_idx": 3,
           "direct_answers": ["elephant"]}  # fmt: skip
    write_json(root / "aokvqa/aokvqa_v1p0_val.json", [row])
    write_picture(root / "coco/val2017/000000299207.jpg")


def vcr(root):
    row = {"annot_id": "val-0", "img_fn": "film/1.jpg", "objects": ["person", "person", "cup"],
           "question": ["Why", "does", [1], "hold", [2], "?"],
           "answer_choices": [[[1], "is", "thirsty", "."], [[0], "did", "n't", "come", "."], ["No", "."],
                              ["Late", "."]], "answer_label": 0}  # fmt: skip
    write_lines(root / "vcr/val.jsonl", [row])
    write_picture(root / "vcr/vcr1images/film/1.jpg")


WRITERS = {
    "tabmwp": tabmwp, "chartqa": chartqa, "clevr-math": clevr_math, "geoqa": geoqa, "mathvista": mathvista,
    "mathverse": mathverse, "mathvision": mathvision, "olympiadbench": olympiadbench, "mmk12": mmk12,
    "mmmu": mmmu, "mmstar": mmstar, "ai2d": ai2d, "mmbench": mmbench, "scienceqa": scienceqa,
    "aokvqa": aokvqa, "vcr": vcr,
}  # fmt: skip
QUESTIONS = {
    "tabmwp": 2, "chartqa": 2, "clevr-math": 2, "geoqa": 2, "mathvista": 2, "mathverse": 2, "mathvision": 2,
    "olympiadbench": 1, "mmk12": 2, "mmmu": 2, "mmstar": 3, "ai2d": 1, "mmbench": 2, "scienceqa": 1,
    "aokvqa": 1, "vcr": 1,
}  # fmt: skip
RIGHT = {
    "tabmwp": "The mean is 1200. Answer: $1,200", "chartqa": "41", "clevr-math": "Answer: 3",
    "geoqa": "B. 60°", "mathvista": "1.2", "mathverse": "The answer is B.", "mathvision": "Answer: 6",
    "olympiadbench": "Answer: 0.5", "mmk12": "C", "mmmu": "(A)", "mmstar": "B: a dog", "ai2d": "hare",
    "mmbench": "B", "scienceqa": "B. cow", "aokvqa": "elephants", "vcr": "A",
}  # fmt: skip
WRONG = {
    "tabmwp": "Answer: 1,300", "chartqa": "44", "clevr-math": "Answer: 4", "geoqa": "C", "mathvista": "1.4",
    "mathverse": "A", "mathvision": "Answer: 7", "olympiadbench": "Answer: 2", "mmk12": "A", "mmmu": "B",
    "mmstar": "C", "ai2d": "fox", "mmbench": "A", "scienceqa": "newt", "aokvqa": "boats", "vcr": "D",
}  # fmt: skip
