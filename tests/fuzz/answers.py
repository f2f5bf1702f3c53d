"""Answers files: read, written and read back, with phrases and scores of whatever stands in them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

from reverse.data.scenes import make_scene
from reverse.data.scenes.benchmark_files import write_benchmarks
from reverse.evaluation.detector.phrase_truth import read_phrases
from reverse.evaluation.reading.answers import read_answers, read_rows, read_run_answers
from reverse.evaluation.reports.reporting import ReportSettings, write_report
from reverse.evaluation.runs.answers_files import AnswersFile, remove_timing
from reverse.evaluation.runs.scoring import score_file
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from tests.fuzz.mutating import dumps, encode, mutate_bytes, mutate_json
from tests.fuzz.running import REFUSALS, Target, check_refusal, expect
from tests.fuzz.scratch import folder

CONFIG = "0" * 16


def row(number: int, text: str, image: str) -> dict[str, Any]:
    return {
        "question_id": number,
        "prompt": "Is there a dog in the image?",
        "image_id": image,
        "text": text,
        "generation_history": [],
        "answer_id": "x",
        "model_id": "m",
        "successful_correction": True,
        "metadata": {"benchmark": "pope"},
        "resolved": True,
        "finish_reason": "eos",
        "phrases": [{"text": text[:3], "start": 0, "end": 3, "p_un": 0.25, "status": "accepted"}],
        "attempts": [
            {
                "kind": "rejected",
                "phrase": "a dog",
                "p_un": 0.5,
                "at": 0,
                "rewound_to": 0,
                "temperature": 0.1,
                "level": 0,
                "tokens": 4,
            }
        ],
        "usage": {"kept": 6, "discarded": 4, "unused": 0},
        "config": CONFIG,
        "timing": {"seconds": 0.5, "forwards": 10, "attempts": [0.1]},
    }


def rows() -> list[dict[str, Any]]:
    scene = "test-000000.png"
    said = ("Yes, there is.", "No.", "<think>no</think> Yes", "是", '{"answer": "yes"}', "")
    return [row(i, text, scene) for i, text in enumerate(said)]


def make(rng: Random) -> bytes:
    content = rng.sample(rows(), rng.randint(1, 4))
    content = mutate_json(rng, content) if rng.random() < 0.85 else content
    lines = [dumps(each) for each in content] if isinstance(content, list) else [dumps(content)]
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\n\n")).join(lines) + rng.choice(("\n", "\n", "\n", ""))
    data = encode(rng, text)
    return mutate_bytes(rng, data, header=len(data)) if rng.random() < 0.35 else data


@functools.cache
def truth() -> Path:
    path = folder("truth")
    write_benchmarks(path, "test", 2, 0)
    make_scene("test", 0)
    return path


def check(data: bytes) -> str:
    path = folder("answers") / "pope.jsonl"
    path.write_bytes(data)
    whole = data.endswith(b"\n")
    outcomes = []
    for read in (
        lambda: list(read_rows(path)),
        lambda: read_run_answers(path),
        lambda: read_answers(path),
    ):
        try:
            found = read()
        except REFUSALS as error:
            outcomes.append(check_refusal(error, path.name))
        else:
            outcomes.append("read")
            expect(found is not None, "nothing was read")
    if outcomes[1] == "read" and whole:
        read_back(path)
    pick = sum(data) % 4  # what takes longer is tried on some
    if pick == 0:
        try:
            read_phrases(path, None)
        except REFUSALS as error:
            check_refusal(error)
    elif pick == 1:
        try:
            score_file(path, truth(), "pope", partial=True)
        except REFUSALS as error:
            check_refusal(error)
    elif pick == 2:
        try:
            write_report(
                [path.parent], folder("report"), ReportSettings(bootstrap=BootstrapSettings(rounds=10))
            )
        except REFUSALS as error:
            check_refusal(error)
    return outcomes[2]


def read_back(path: Path) -> None:
    """What was read is written as a run writes it, and is then the same rows."""
    given = read_run_answers(path).rows
    if any(each.get("config") != CONFIG for each in given):
        return
    out = folder("written") / "pope.jsonl"
    for old in out.parent.iterdir():
        old.unlink()
    ids = [each["question_id"] for each in given]
    with AnswersFile(out, {"config": {}, "questions": {"ids": ids}}) as file:
        for each in given:
            file.write(each)
    again = read_run_answers(out).rows
    expect(
        json.dumps([remove_timing(r) for r in again]) == json.dumps([remove_timing(r) for r in given]),
        "read back it is another answer",
        given,
        again,
    )


TARGET = Target("answers", make, check, share=0.05, quick=200)
