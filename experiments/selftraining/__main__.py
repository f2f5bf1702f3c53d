"""Train a model on its own graded answers, in several ways, and measure what each gains.

    python -m experiments.selftraining --out out/selftraining/qwen-0 --seed 0
    python -m experiments.selftraining --start out/reasoning/llava-0/base --out out/selftraining/llava-0
    python -m experiments.selftraining --smoke --out out/smoke      # under a minute; learns nothing

A run that is stopped goes on when it is started again.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.recipe_arguments import read_recipe
from experiments.selftraining.loop_settings import LoopSettings
from experiments.selftraining.loop_stages import SelfTraining


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.selftraining`."""
    settings = read_recipe(LoopSettings, "python -m experiments.selftraining", __doc__, arguments)
    SelfTraining(settings, lambda line: print(line, flush=True)).run()


if __name__ == "__main__":
    main()
