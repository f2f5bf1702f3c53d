"""What decides a run of the self-training experiment: systems, data, steps, seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from reverse.errors import RequestError
from reverse.modes import Select

__all__ = ["SYSTEMS", "LoopSettings", "System"]


@dataclass(frozen=True)
class System:
    """A way to train on graded answers.

    Args:
        short, long: kinds of rows (`loop_rows`), with the rows that a picture gives in a step. The rows of
            each group have one length.
        modes: what is measured beside greedy answers.
        resamples: every iteration samples from the newest model; without, there is one iteration.
        step_factor: times the steps of the settings.
    """

    short: tuple[tuple[str, int], ...]
    long: tuple[tuple[str, int], ...] = ()
    modes: tuple[str, ...] = ()
    resamples: bool = True
    step_factor: float = 1.0


SYSTEMS: dict[str, System] = {
    "r3v": System((("own", 3),), (("refine", 2), ("select", 2)), ("select", "refine")),
    "star": System((("own", 3),), modes=("vote",)),  # rationales that lead to the right answer, and no more
    # The annotator's rationales, for as long as r3v's rows take, which are longer and more.
    "longer": System((("annotated", 3),), resamples=False, step_factor=2.5),
    "sco": System((("own", 3),), (("corrected", 3),), ("self_correct",)),
    "sco_published": System((("own", 3),), (("kept", 3),), ("self_correct",)),
    "srpo": System((("own", 3),), (("reflected", 3),), ("reflect",)),
}


@dataclass(frozen=True)
class LoopSettings:
    """Everything that decides what comes out. Every iteration trains the start again."""

    start: str = "tiny-reasoner"  # a folder, or the name of a bundled model
    out: str = "out/selftraining"
    systems: str = "r3v,star,longer"
    iterations: int = 2
    seed: int = 0  # of sampling and of the order of rows
    data_seed: int = 0  # of pictures and questions
    side: int = 112  # pixels of a picture
    tables: float = 0.35  # share of tables
    pictures: int = 800  # that questions to train on are asked about
    questions: int = 3  # a picture
    samples: int = 3  # of a question in each iteration, at temperature 1
    verify: str = "answer"  # "answer": its final answer makes a sample right (published); or "steps"
    untagged: bool = False  # rows without the three tokens, for a start that does not write them
    steps: int = 100  # of each training
    batch_pictures: int = 24  # of a group in a step
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    test_questions: int = 2_000
    test_samples: int = 3  # of a test question: select@N, vote@N, oracle@N
    gated: str = ""  # models that refine only doubtful answers, such as "start,r3v-2"
    most_tokens: int = 160  # of one answer
    batch: int = 384  # answers decoded side by side; other numbers draw other samples
    workers: int = 0  # processes that make rows; 0: this one
    compile: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.systems.split(",")) - set(SYSTEMS)
        if unknown:
            raise RequestError(
                f"unknown systems {', '.join(sorted(unknown))}: there are {', '.join(SYSTEMS)}"
            )
        known = {"start"} | {f"{name}-{n}" for name in self.systems.split(",") for n in self.count(name)}
        wrong = set(filter(None, self.gated.split(","))) - known
        if wrong:
            raise RequestError(
                f"gated names {', '.join(sorted(wrong))}: there are {', '.join(sorted(known))}"
            )
        if self.test_samples > Select().group:
            raise RequestError(f"test_samples must be at most {Select().group}, got {self.test_samples}")
        if self.verify not in ("answer", "steps"):
            raise RequestError(f"verify must be answer or steps, got {self.verify!r:.80}")

    def count(self, system: str) -> range:
        """The numbers of a system's iterations."""
        return range(1, self.iterations + 1 if SYSTEMS[system].resamples else 2)

    def smoke(self) -> LoopSettings:
        """The same in miniature."""
        return replace(
            self, pictures=4, questions=2, samples=2, steps=2, batch_pictures=2, test_questions=3,
            test_samples=2, most_tokens=8,
        )  # fmt: skip

    def settings_of(self, stage: str) -> dict[str, Any]:
        """What the outcome of a stage depends on; not where or how fast it runs."""
        left_out = {"out", "systems", "iterations", "gated", "workers", "compile"}
        if not stage.startswith("measure"):
            left_out |= {"test_questions", "test_samples"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}
