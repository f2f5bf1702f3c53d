"""What decides a model of the reasoning world: sizes, data, steps, seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from reverse.errors import RequestError

__all__ = ["AUTO_BUDGETS", "MODES", "REFLECTION", "SIZES", "STAGES", "TEST_MODES", "ReasoningRecipe"]

STAGES: tuple[str, ...] = ("init", "base", "sample", "one", "greedy", "truth", "answer", "report")
STAGES += ("sample2", "two", "answer2", "report2", "half")
AUTO_BUDGETS = (60, 120, 240)  # tokens
# In the order in which they are answered; those of TEST_MODES are measured on `test` only.
MODES: tuple[str, ...] = (
    "plain",
    "resample",
    "refine_gated",
    "self_correct_gated",
    "reflect_gated",
    "select8",
)
MODES += ("tree", *(f"auto{tokens}" for tokens in AUTO_BUDGETS), "select3")
TEST_MODES: tuple[str, ...] = ("refine", "self_correct", "reflect", "samples", "tree2", "resample_defaults")
TEST_MODES += ("self_correct_rounds2", "self_correct_rounds3")
# Without an instruction, questions for a reflection and for a plain answer would be the same.
REFLECTION = "Think and answer, then reflect and answer again."
# At most 3 million parameters.
SIZES: dict[str, int] = {
    "vision_layers": 6, "vision_hidden": 160, "vision_inner": 272, "vision_heads": 5,
    "text_layers": 4, "text_hidden": 160, "text_inner": 320, "text_heads": 5,
}  # fmt: skip
PATCHES = {"llava": 8, "qwen": 8}


@dataclass(frozen=True)
class ReasoningRecipe:
    """Everything that decides what comes out. Steps count optimizer steps."""

    out: str = "out/reasoning"  # folder of the stages' folders
    family: str = "qwen"  # or "llava"
    stages: str = "init,base,sample,one,greedy,answer,report"
    seed: int = 0  # of weights, order and sampling
    data_seed: int = 0  # of pictures, questions and the annotator: what the seeds of a comparison share
    shared: str = ""  # folder of rows that runs with one data seed share; empty: nothing is kept
    layers: int = 0  # of both parts; 0: those of `SIZES`
    side: int = 112  # pixels of a picture
    vocabulary: int = 700  # ids, the three tokens included
    tables: float = 0.35  # share of tables in training
    base_pictures: int = 80_000
    base_batch: int = 96  # pictures a step, four rows each
    base_steps: int = 6_000
    base_lr: float = 1.5e-3
    question_pictures: int = 16_000
    questions: int = 3  # a picture
    samples: int = 3  # of the base, a question, at temperature 1
    truth_share: float = 1.0  # of the questions whose samples are verified
    joint_steps: int = 5_000
    joint_lr: float = 1e-3
    short_pictures: int = 44  # a step; rows of each pool a picture:
    solve_rows: int = 2
    judge_rows: int = 3
    replay_rows: int = 1
    long_pictures: int = 52
    correction_rows: int = 4
    select_rows: int = 1
    reflect_judge_rows: int = 1
    own_pictures: int = 64  # of the baselines
    own_rows: int = 3
    judge_weight: float = 4.0
    select_weight: float = 2.0
    covered: float = 0.99  # share of each pool's rows that are short enough to be trained
    weight_decay: float = 0.05
    beta2: float = 0.98
    warmup: float = 0.03
    checkpoint_steps: int = 2_000
    splits: str = "test,shift"  # that are measured
    modes: str = ""  # that are measured beside "plain", such as "resample,tree"; empty: all
    test_questions: int = 2_000
    shift_questions: int = 500
    val_questions: int = 480
    most_samples: int = 32  # of select's curves
    most_tokens: int = 160  # of one answer
    sequences: int = 128  # decoded side by side while measuring
    workers: int = 0  # 0: in this process
    compile: bool = False

    def __post_init__(self) -> None:
        if self.family not in PATCHES:
            raise RequestError(f"family must be one of {', '.join(PATCHES)}, got {self.family!r:.80}")
        unknown = set(self.stages.split(",")) - set(STAGES)
        if unknown:
            raise RequestError(f"unknown stages {', '.join(sorted(unknown))}: there are {', '.join(STAGES)}")
        if unknown := set(filter(None, self.modes.split(","))) - {*MODES, *TEST_MODES}:
            known = ", ".join((*MODES, *TEST_MODES))
            raise RequestError(f"unknown modes {', '.join(sorted(unknown))}: there are {known}")
        if not 0 < self.truth_share <= 1:
            raise RequestError(f"truth_share must lie in (0, 1], got {self.truth_share}")

    @property
    def sizes(self) -> dict[str, int]:
        """Layers and widths of both parts of the model."""
        layers = {"vision_layers": self.layers, "text_layers": self.layers}
        return SIZES | (layers if self.layers else {})

    @property
    def patch(self) -> int:
        """Pixels of a patch."""
        return PATCHES[self.family]

    @property
    def pools(self) -> tuple[str, ...]:
        """Kinds of rows about answered questions that the stages need."""
        found = ["solve", "judge", "reflect_judge", "correction", "select", "replay", "own"]
        stages = self.stages.split(",")
        found += ["truth"] if "truth" in stages else []
        return (*found, "own_tagged") if "two" in stages else tuple(found)

    @property
    def measured(self) -> list[tuple[str, str]]:
        """(split, mode) in the order in which they are answered: what all splits have comes first."""
        chosen = {"plain", *self.modes.split(",")} if self.modes else {*MODES, *TEST_MODES}
        work = [(split, name) for split in self.splits.split(",") for name in MODES]
        work += [("test", name) for name in TEST_MODES if "test" in self.splits.split(",")]
        return [(split, name) for split, name in work if name in chosen]

    def count_questions(self, split: str) -> int:
        """Questions of a split that are answered."""
        counts = {"val": self.val_questions, "shift": self.shift_questions}
        return counts.get(split, self.test_questions)

    def smoke(self) -> ReasoningRecipe:
        """The same recipe in miniature: a few steps of a model that learns nothing."""
        return replace(
            self, base_pictures=12, base_batch=2, base_steps=2, question_pictures=6, samples=2,
            joint_steps=2, short_pictures=2, long_pictures=2, own_pictures=2,
            splits="test", test_questions=2, val_questions=2, most_samples=2, most_tokens=8,
            sequences=8, checkpoint_steps=2, layers=1,
        )  # fmt: skip

    def settings_of(self, stage: str) -> dict[str, Any]:
        """What the outcome of a stage depends on; not where or how fast it runs."""
        elsewhere = {
            "out",
            "stages",
            "modes",
            "shared",
            "workers",
            "compile",
            "checkpoint_steps",
            "sequences",
        }
        settings = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        measuring = ("splits", "test_", "shift_", "val_", "most_")
        joint = (
            "truth_",
            "joint_",
            "short_",
            "solve_",
            "judge_",
            "replay_",
            "long_",
            "correction_",
            "select_",
            "reflect_",
            "own_",
            "covered",
        )
        sampling = ("question_", "questions", "samples")
        later = {
            "init": ("base_", *sampling, *joint, *measuring),
            "base": (*sampling, *joint, *measuring),
            "sample": (*joint, *measuring),
        }.get(stage, () if stage.startswith(("answer", "report")) else measuring)
        return {name: value for name, value in settings.items() if not name.startswith(later)}
