"""Train a model on its own graded answers, in several ways, and measure what each gains.

    python -m experiments.selftraining --out out/selftraining/qwen-0 --seed 0
    python -m experiments.selftraining --start out/reasoning/llava-0/base --out out/selftraining/llava-0
    python -m experiments.selftraining --smoke --out out/smoke      # under a minute; learns nothing

A run that is stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields

from experiments.selftraining.loop_settings import LoopSettings
from experiments.selftraining.loop_stages import SelfTraining


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.selftraining", description=summary)
    for field in fields(LoopSettings):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(
                option, type=type(field.default), default=field.default, help="default: %(default)s"
            )
    parser.add_argument("--smoke", action="store_true", help="a few steps of a few questions")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.selftraining`."""
    given = vars(_parser().parse_args(arguments))
    smoke = given.pop("smoke")
    settings = LoopSettings(**given)
    SelfTraining(settings.smoke() if smoke else settings, lambda line: print(line, flush=True)).run()


if __name__ == "__main__":
    main()
