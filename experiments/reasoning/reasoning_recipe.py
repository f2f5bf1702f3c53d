"""What decides a model of the reasoning world: sizes, data, steps, seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from reverse.errors import RequestError

__all__ = ["REFLECTION", "SIZES", "STAGES", "ReasoningRecipe"]

STAGES = ("init", "base", "sample", "one", "greedy", "truth", "measure", "sample2", "two", "measure2")
# Without an instruction, questions for a reflection and for a plain answer would be the same.
REFLECTION = "Think and answer, then reflect and answer again."
SIZES: dict[str, dict[str, int]] = {
    "llava": {
        "vision_layers": 6, "vision_hidden": 192, "vision_inner": 512, "vision_heads": 6,
        "text_layers": 5, "text_hidden": 192, "text_inner": 512, "text_heads": 6,
    },
    "qwen": {
        "vision_layers": 6, "vision_hidden": 192, "vision_inner": 512, "vision_heads": 6,
        "text_layers": 5, "text_hidden": 192, "text_inner": 512, "text_heads": 6,
    },
}  # fmt: skip
SMALL = {"vision_hidden": 160, "vision_inner": 272, "vision_heads": 5}
SMALL |= {"text_layers": 4, "text_hidden": 160, "text_inner": 320, "text_heads": 5}


@dataclass(frozen=True)
class ReasoningRecipe:
    """Everything that decides what comes out. Steps count optimizer steps."""

    out: str = "out/reasoning"  # folder of the stages' folders
    family: str = "qwen"  # or "llava"
    stages: str = "init,base,sample,one,greedy,measure"
    seed: int = 0
    is_small: bool = False  # at most 3M parameters, as the bundled tiny-reasoner
    layers: int = 0  # of both parts; 0: the family's
    side: int = 112  # pixels of a picture
    patch: int = 8  # pixels of a patch: 196 ids a picture, 49 where four patches are merged
    vocabulary: int = 700  # ids, the three tokens included
    tables: float = 0.35  # share of tables in training
    base_pictures: int = 160_000
    base_batch: int = 128  # pictures a step, four rows each
    base_steps: int = 8_000
    base_lr: float = 1.5e-3
    question_pictures: int = 50_000
    questions: int = 2  # a picture
    samples: int = 3  # of the base, a question, at temperature 1
    truth_share: float = 1.0  # of the questions whose samples are verified
    joint_steps: int = 8_600
    joint_lr: float = 1e-3
    solve_rows: int = 112  # a step, of each pool
    judge_rows: int = 112
    replay_rows: int = 32
    correction_rows: int = 144
    select_rows: int = 112
    judge_weight: float = 4.0
    select_weight: float = 2.0
    covered: float = 0.99  # share of each pool's rows that are short enough to be trained
    weight_decay: float = 0.05
    beta2: float = 0.98
    warmup: float = 0.03
    checkpoint_steps: int = 2_000
    splits: str = "test,shift"  # that are measured
    test_questions: int = 2_000
    val_questions: int = 480
    most_samples: int = 32  # of select's curves
    most_tokens: int = 160  # of one answer
    sequences: int = 128  # decoded side by side while measuring
    workers: int = 0  # 0: in this process
    compile: bool = False

    def __post_init__(self) -> None:
        if self.family not in SIZES:
            raise RequestError(f"family must be one of {', '.join(SIZES)}, got {self.family!r:.80}")
        unknown = set(self.stages.split(",")) - set(STAGES)
        if unknown:
            raise RequestError(f"unknown stages {', '.join(sorted(unknown))}: there are {', '.join(STAGES)}")
        if not 0 < self.truth_share <= 1:
            raise RequestError(f"truth_share must lie in (0, 1], got {self.truth_share}")

    @property
    def sizes(self) -> dict[str, int]:
        """Layers and widths of both parts of the model."""
        sizes = SIZES[self.family] | (SMALL if self.is_small else {})
        layers = {"vision_layers": self.layers, "text_layers": self.layers}
        return sizes | (layers if self.layers else {})

    def smoke(self) -> ReasoningRecipe:
        """The same recipe in miniature: a few steps of a model that learns nothing."""
        return replace(
            self, base_pictures=12, base_batch=2, base_steps=2, question_pictures=6, samples=2,
            joint_steps=2, solve_rows=4, judge_rows=4, replay_rows=2, correction_rows=4, select_rows=2,
            splits="test", test_questions=2, val_questions=2, most_samples=2, most_tokens=8,
            sequences=8, checkpoint_steps=2, layers=1, is_small=True,
        )  # fmt: skip

    def settings_of(self, stage: str) -> dict[str, Any]:
        """What the outcome of a stage depends on; not where or how fast it runs."""
        elsewhere = {"out", "stages", "workers", "compile", "checkpoint_steps", "sequences"}
        settings = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        later = {
            "init": (
                "base_",
                "question_",
                "questions",
                "samples",
                "truth_",
                "joint_",
                "test_",
                "val_",
                "most_",
            ),
            "base": ("question_", "questions", "samples", "truth_", "joint_", "test_", "val_", "most_"),
            "sample": ("truth_", "joint_", "test_", "val_", "most_"),
        }.get(stage, ("test_", "val_", "most_", "splits") if not stage.startswith("measure") else ())
        later += ("solve_", "judge_", "replay_", "correction_", "select_") if stage in STAGES[:3] else ()
        return {name: value for name, value in settings.items() if not name.startswith(later)}
