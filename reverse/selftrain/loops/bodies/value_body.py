"""Stage "value": a value head for a model, trained on the tree values of judged answers (TSST).

    OUT/value_head.safetensors, value_head.json       the head
    OUT/records.jsonl                                 what it was trained on

The model stays as it is; the head reads its last hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.evaluation.runs.benchmark_run import ProcessPlace
from reverse.selftrain.loops.bodies.answer_body import find_device, find_model
from reverse.selftrain.loops.stage import Stage, StageBody, StageContext

__all__ = ["VALUE"]


def train_value(context: StageContext) -> dict[str, Any]:
    """Train and save the head; returns its report."""
    from reverse.models import load
    from reverse.models.value_head import save_value_head
    from reverse.training.value_training import ValueConfig, train_value_head

    settings = context.settings
    write_drafts(context.out / "records.jsonl", _list_records(context))
    model, processor = load(
        find_model(context),
        device=find_device(settings.get("device"), context.place),
        dtype=settings.get("dtype"),
        require_tokens=False,
    )
    config = ValueConfig(**settings["value"], tagged=settings["tagged"], seed=context.seed)
    records = read_drafts(context.out / "records.jsonl")
    head, report = train_value_head(
        model, processor, records, context.outside["images"], config, context.progress
    )
    save_value_head(head, context.out, notes=report)
    return {"value": {name: report[name] for name in report if name != "config"}}


def _list_records(context: StageContext) -> Iterator[DraftRecord]:
    """The warm-up rationales, then the pool."""
    for role, file in (("questions", "warmup.jsonl"), ("pool", "pool.jsonl")):
        if role not in context.inputs or not (context.inputs[role] / file).exists():
            continue
        for record in read_drafts(context.inputs[role] / file):
            yield record.model_copy(update={"id": f"{role}/{record.id}"})


def check_value(stage: Stage, processes: int) -> None:
    """Check the settings of the head, and the device."""
    from reverse.training.value_training import ValueConfig

    ValueConfig(**stage.settings["value"], tagged=stage.settings["tagged"], seed=stage.seed)
    find_device(stage.settings.get("device"), ProcessPlace())


VALUE = StageBody(train_value, check=check_value)
