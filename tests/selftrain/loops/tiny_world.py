"""Draft files with a few questions, and a tiny base that learns to answer them in a second."""

from PIL import Image

from experiments.tiny_models import build_tiny_llava
from reverse.data.drafts.draft_files import write_drafts
from reverse.data.drafts.draft_record import DraftRecord


def write_tiny_world(folder, count=8):
    """Pictures of one colour, questions whose answer is 1 or 2 by the colour, rationales and corrections."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for name, colour in (("red.png", (255, 0, 0)), ("blue.png", (0, 0, 255))):
        Image.new("RGB", (112, 112), colour).save(pictures / name)
    for split in ("train", "test", "warmup"):
        write_drafts(folder / f"{split}.jsonl", [make_record(split, k) for k in range(count)])
    model, processor = build_tiny_llava(seed=0, text={"initializer_range": 0.02})
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")


def make_record(split, number):
    answer = str(1 + number % 2)
    said = {"1": "Answer: 1", "2": "Answer: 2"}
    drafts = [
        {
            "text": said[answer],
            "role": "rationale",
            "verdict": "right",
            "judged_by": "human",
            "answer": answer,
        },
        {"text": said[answer], "role": "correction", "judged_by": "", "answer": answer, "parent": 0},
    ]
    return DraftRecord.model_validate(
        {
            "id": f"{split}-{number}",
            "question": "How many?",
            "images": [("red.png", "blue.png")[number % 2]],
            "gold": {"kind": "number", "answers": [answer]},
            "drafts": drafts,
        }
    )  # fmt: skip


def tiny_settings(folder, out, **more):
    """Settings of a recipe for a loop of seconds."""
    settings = {
        "output": out,
        "model": folder / "base",
        "questions.train": folder / "train.jsonl",
        "questions.test": folder / "test.jsonl",
        "questions.warmup": folder / "warmup.jsonl",
        "questions.images": folder / "pictures",
        "questions.test_images": "none",
        "verify": "answer",
        "engine.max_new_tokens": 16,
        "optim.steps": 40,
        "optim.global_batch": 4,
        "optim.batch": 4,
        "optim.lr": 0.01,
    }
    return [f"{key}={value}" for key, value in (settings | more).items()]
