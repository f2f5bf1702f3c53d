"""Stage "report": one table of all iterations, with what each cost.

OUT/report.json    figures of every stage that measures, pools or trains, in the order of the loop
OUT/report.md      the same as a table
"""

from __future__ import annotations

from typing import Any

from reverse.files.atomic_write import replace_file, write_json
from reverse.files.text_reading import read_json
from reverse.selftrain.loops.stage import StageBody, StageContext
from reverse.selftrain.loops.stage_folders import RECORD

__all__ = ["REPORT"]


def write_report(context: StageContext) -> dict[str, Any]:
    """Collect figures of all stages; `seconds` is the duration of each stage."""
    stages = []
    for name in context.settings["stages"]:
        content = read_json(context.inputs[name] / RECORD)
        stages.append({"stage": name, "seconds": content["seconds"], **content["figures"]})
    write_json(context.out / "report.json", {"stages": stages})
    with replace_file(context.out / "report.md") as stream:
        stream.write(make_table(stages).encode())
    return {}


def make_table(stages: list[dict[str, Any]]) -> str:
    """Make a Markdown table with a line for each figure of each run of answers."""
    lines = ["| stage | answers | figure | value | 95 % interval |", "|---|---|---|---|---|"]
    for stage in stages:
        for run, figures in stage.get("runs", {}).items():
            for name, figure in figures.items():
                if not isinstance(figure, list) or figure[0] is None:
                    continue
                point, low, high = (None if each is None else 100 * each for each in figure)
                interval = "" if low is None or high is None else f"{low:.1f} to {high:.1f}"
                lines.append(f"| {stage['stage']} | {run} | {name} | {point:.1f} | {interval} |")
    return "\n".join(lines) + "\n"


REPORT = StageBody(write_report)
