"""Files of instruct records: scanned as `json` reads them, read, checked, paired with negatives."""

from __future__ import annotations

import codecs
import io
import json
import math
from pathlib import Path
from random import Random
from typing import Any

from reverse.data.negatives import make_lexicon_negatives
from reverse.data.records.published_set import read_records
from reverse.data.records.record_rules import check_shape, find_faults
from reverse.data.records.set_check import check_set
from reverse.files.json_scanning import Broken, scan
from reverse.files.text_reading import MAX_DEPTH
from tests.fuzz.mutating import dumps, encode, mutate_bytes, mutate_json
from tests.fuzz.running import REFUSALS, Target, check_refusal, expect
from tests.fuzz.scratch import folder

RECORDS: list[dict[str, Any]] = [
    {
        "id": "1",
        "image": "coco/1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is there?"},
            {
                "from": "gpt",
                "value": "<SPAN>Two cups</CN> and <SPAN>a dog</CN>.",
                "A_type": "general_answer",
                "hint": None,
            },
        ],
    },
    {
        "id": 7,
        "conversations": [
            {"from": "human", "value": "Is the sky blue?"},
            {"from": "gpt", "value": "<SPAN>Yes</CN>.", "A_type": "yes_no", "hint": "a grey sky"},
            {"from": "human", "value": "How many moons are there?"},
            {"from": "gpt", "value": "<SPAN>One</CN>.", "A_type": "number", "hint": None},
        ],
    },
    {
        "id": "1-neg",
        "image": "coco/1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is there?"},
            {"from": "gpt", "value": "<SPAN>Three cups</UN>", "A_type": "general_answer", "hint": None},
        ],
    },
    {
        "id": "2",
        "images": ["coco/1.png", "coco/2.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is there?"},
            {"from": "gpt", "value": "<SPAN>Two cups</CN>.", "A_type": "general_answer", "hint": None},
            {"from": "human", "value": "And here?\n<image>"},
            {"from": "gpt", "value": "<SPAN>A dog</CN>.", "A_type": "general_answer", "hint": None},
        ],
    },
]


def make(rng: Random) -> bytes:
    records: Any = [rng.choice(RECORDS) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.7:
        records = mutate_json(rng, records)
    if rng.random() < 0.5 and isinstance(records, list):
        text = "\n".join(dumps(record) for record in records) + rng.choice(("\n", ""))
    else:
        text = dumps(records, rng)
    data = encode(rng, text)
    return mutate_bytes(rng, data, header=len(data)) if rng.random() < 0.5 else data


def check(data: bytes) -> str:
    items = list(scan(io.BytesIO(data)))
    broken = [item for item in items if isinstance(item, Broken)]
    expected = read_slowly(data)
    if expected is not None:
        expect(not broken, "json reads all of it", broken)
        values = [item.value for item in items if not isinstance(item, Broken)]
        expect(same(values, expected), "other values than json reads", values, expected)
    elif not broken:
        expect(read_slowly(data, strict=False) is not None, "json refuses it, and nothing is broken", items)
    path = folder() / "records.json"
    path.write_bytes(data)
    outcome = read_all(path)
    report = check_set(path)
    json.dumps(report.to_dict())
    expect(report.counts["broken"] >= len(broken), "fewer broken records than items", report.counts)
    expect(not (report.ok and outcome == "refused"), "data check finds nothing wrong, reading refuses it")
    return outcome


def read_all(path: Path) -> str:
    try:
        records = list(read_records(path))
    except REFUSALS as error:
        return check_refusal(error, path.name)
    for record in records:
        check_shape(record)
        try:
            list(find_faults(record))
            made = [list(pair) for pair, *_ in make_lexicon_negatives([record])]
        except REFUSALS as error:
            check_refusal(error)
        else:
            expect(len(made) == 1 and made[0], "a record is lost among its negatives", record)
    return "read"


def read_slowly(data: bytes, strict: bool = True) -> list[Any] | None:
    """The values of a list or of lines as `json` reads them; None where it refuses any, or would be asked to
    read what the library refuses: NaN, brackets that are nested too deeply."""

    def constant(_: str) -> Any:
        if strict:
            raise ValueError
        return math.nan

    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
        if text.lstrip(" \t\r\n").startswith("["):
            values = json.loads(text, parse_constant=constant)
        else:
            lines = [line.strip(b" \t\r\n") for line in data.split(b"\n")]
            values = [json.loads(line.decode("utf-8"), parse_constant=constant) for line in lines if line]
    except (ValueError, RecursionError):
        return None
    return None if strict and depth(values) > MAX_DEPTH else values


def depth(values: Any) -> int:
    """How many brackets stand in one another."""
    level, found = [values], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # NaN equals itself here


TARGET = Target("records", make, check, share=0.06, quick=250)
