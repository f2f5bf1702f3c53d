"""How fast conversations become ids and labels: records read, hints drawn, tokenised, masked, on one core.

    PYTHONPATH=. python benchmarks/encoding.py [--tokenizer FOLDER_OR_ID] [--records 4000]

Pictures are not opened: a picture's ids are written out, its pixels are another matter. Records are captions
of scenes with their questions (new questions every time) as `reverse data scenes` writes them, or a file of
yours. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core

import numpy as np
import torch

from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.data.records.schema import make_record
from reverse.data.scenes import make_scene, make_scene_records
from reverse.tokens import add_tokens
from reverse.training.data.encoding import Encoder
from reverse.training.data.training_sets import RecordDataset

TARGET = 2000  # samples a second


def write_records(path: Path, count: int) -> None:
    """Records of one to three turns; no two questions alike, so that no cache of templates helps."""
    records: list[dict] = []
    index = 0
    while len(records) < count:
        for record in make_scene_records(make_scene("train", index, 0)):
            said = record["conversations"]
            name = len(records)
            whole = make_record(
                str(name), record["image"], f"({name}) {said[0]['value'][8:]}", said[1]["value"]
            )
            whole["conversations"][1] |= {"A_type": said[1]["A_type"], "hint": said[1]["hint"]}
            for turn in range(name % 3):
                human = {"from": "human", "value": f"And ({name}.{turn})? Answer in a few words."}
                whole["conversations"] += [human, {"from": "gpt", "value": "There is <SPAN>a cup</CN>."}]
            records.append(whole)
        index += 1
    path.write_text(json.dumps(records[:count]), encoding="utf-8")


def measure(dataset: RecordDataset, image_tokens: int) -> tuple[float, float]:
    """(samples a second, mean ids a sample)."""
    lengths = []
    began = time.perf_counter()
    for index in range(len(dataset)):
        lengths.append(len(dataset.row(index, image_tokens).ids))
    return len(dataset) / (time.perf_counter() - began), float(np.mean(lengths))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--file", type=Path, help="a file of records instead of scenes'")
    parser.add_argument("--tokenizer", help="a checkpoint whose processor is used instead of the tiny ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict = {
        "benchmark": "encoding",
        "cpu": platform.processor() or platform.machine(),
        "target": TARGET,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "records.json"
        if options.file is None:
            write_records(path, options.records)
        if options.tokenizer:
            from reverse.models.checkpoints.loading import find_checkpoint
            from reverse.models.processors.picture_processors import load_processor

            where, family = find_checkpoint(options.tokenizer)
            named = {options.tokenizer: load_processor(where, family)}
        else:
            named = {}
            for name, build in (("llava", build_tiny_llava), ("qwen", build_tiny_qwen)):
                model, processor = build()
                add_tokens(model, processor)
                named[name] = processor
        for name, processor in named.items():
            dataset = RecordDataset(path, folder, Encoder(processor), seed=0)
            rate, ids = max(measure(dataset, 576) for _ in range(2))
            result[name] = {"samples_per_second": round(rate), "ids_per_sample": round(ids)}
    result["reached"] = all(
        value["samples_per_second"] >= TARGET for value in result.values() if isinstance(value, dict)
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
