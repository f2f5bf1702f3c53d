"""A run whose answers need no model: `python -m tests.evaluation.mock_run DATA OUT [PAUSE]`."""

import sys
import time

from reverse.decoding.result import Phrase, Result, TraceEntry, Usage
from reverse.evaluation import benchmarks
from reverse.evaluation.runs.benchmark_run import Decoding, EvalConfig, find_place, question_seed, run


def answer(question, seed=0):
    """A result that depends on the question and the seed alone, as that of a model does."""
    seed = question_seed(seed, question.id)
    text = f"There is a dog and {seed % 97} cats, it says: „über\u2028{seed}“."
    phrase = Phrase("a dog", 9, 14, (seed % 1000) / 7000, "accepted")
    lost = TraceEntry("rejected", "a horse", 0.9, 3, 1, 0.1, 0, 4, time.perf_counter())
    return Result(text, "", (phrase,), True, "eos", (lost,) * (seed % 3), Usage(20, 4, 9, time.time()), ())


def asking(pause=0.0, stop_after=None, seed=0):
    def ask(questions):
        for number, question in enumerate(questions):
            if number == stop_after:
                raise KeyboardInterrupt
            time.sleep(pause)
            yield answer(question, seed)

    return ask


def answered(data, out, name="pope", pause=0.0, stop_after=None, seed=0, images=None, **options):
    bench = benchmarks.named(name)[0]
    config = EvalConfig(Decoding(threshold=0.5, seed=seed), images=images)
    return run(bench, (None, None), data, out, config, ask=asking(pause, stop_after, seed), **options)


if __name__ == "__main__":
    answered(
        sys.argv[1], sys.argv[2], pause=float(sys.argv[3]) if len(sys.argv) > 3 else 0.0, at=find_place()
    )
