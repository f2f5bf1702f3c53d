"""Compare `ReleasedPolicy` with the published code on random scripts: final text and calls of generate().

    git clone https://github.com/tsunghan-wu/reverse_vlm PATH
    PYTHONPATH=. python benchmarks/fidelity.py --published PATH      # two minutes on one core

The published code is an oracle: it is read from PATH and run, and nothing of it is copied. Only its
correction loop is run, once as it stands for LLaVA and once for Qwen2.5-VL, and only with the files of the
commit named below: other contents are refused before they are executed. The loop is given a tokenizer,
arguments and a `generate()` that speak for a script of `tests/decoding/scripts.py`; the same script drives
`ReleasedPolicy`.

What is compared is the text without blanks (the published code deletes blanks before punctuation and doubles
others) and the number of calls. Hints are compared by what a script's model hears of them: the last five
phrases, without case, blanks, tags, and without the sentence that the published code adds for LLaVA.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tests.decoding.scripts import (  # noqa: E402
    CN,
    DOT,
    EOS,
    FALLBACK_ID,
    SPAN,
    UN,
    Outcome,
    Script,
    decode,
    join_hints,
    make_policy,
    run_policy,
    run_released,
    visible_ids,
)

RESULTS = ROOT / "benchmarks" / "results" / "fidelity.json"
GOLDEN = ROOT / "tests" / "decoding" / "released_golden.json"
COMMIT = "e10150623051c6b64e58b574e14e4ae72e5c1932"
BLOBS = {  # git's name of each file's content at that commit
    "llava/constants.py": "0355ddcaffc73849e36216ef4860346b3c4b9c3e",
    "llava/eval/inference_utils.py": "05bb7be42cf3d8f6ad3532b59c069fb659363d04",
    "qwenvl/eval/inference_utils.py": "303f7a17c878f651d29ed5cb4f4fb7bca520f04b",
}
PROMPT = 8  # ids of the prompt; the published code puts a hint five ids before its end
HINT = 1000  # ids from here on stand for hints
BRANCHES = ("llava", "qwenvl")


# ---------------------------------------------------------------------- the published code
def load_published(path: Path) -> dict[str, ModuleType]:
    """The modules with the correction loops, by branch.

    Raises ValueError if `path` does not hold the published code in the state that is compared with.
    """
    for name, blob in BLOBS.items():
        file = path / name
        if not file.is_file():
            raise ValueError(
                f"{path} is not a checkout of the published code: it has no file {name}; "
                "clone https://github.com/tsunghan-wu/reverse_vlm and pass that folder"
            )
        content = file.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if found != blob:
            raise ValueError(
                f"{file} is not that of the published code at commit {COMMIT[:7]}: its git blob is {found}, "
                f"expected {blob}; run git checkout {COMMIT[:7]} -- {name}"
            )
    return {branch: _import(path, branch) for branch in BRANCHES}


def _import(path: Path, branch: str) -> ModuleType:
    """Import one branch's loop without its package, which would import the whole model."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == branch}
    for name in before:
        del sys.modules[name]
    package = ModuleType(branch)
    package.__path__ = [str(path / branch)]
    sys.modules[branch] = package
    try:
        return importlib.import_module(f"{branch}.eval.inference_utils")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == branch]:
            del sys.modules[name]
        sys.modules.update(before)


def find_commit(path: Path) -> str:
    """The commit that is checked out, or the one whose files these are."""
    command = ["git", "-C", str(path), "rev-parse", "--show-prefix", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return lines[1] if done.returncode == 0 and lines[0] == "" else COMMIT


class ScriptedTokenizer:
    """What the published loop asks of a tokenizer, for the vocabulary of the scripts."""

    eos_token_id, pad_token_id = EOS, -1
    ids = {"<SPAN>": SPAN, "</CN>": CN, "</UN>": UN, ".": DOT}  # noqa: RUF012

    def __init__(self, hint_format: str):
        self.before, self.after = hint_format.split("{}")
        self.hints: list[str | None] = []  # phrases of each hint that was encoded; None: it names none

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.ids[token]

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return decode(ids.tolist())

    def batch_decode(self, rows: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]

    def encode(self, text: str, return_tensors: str) -> torch.Tensor:
        """One id for the whole hint, after the one that the caller takes for the beginning of the text."""
        assert return_tensors == "pt"
        _, found, phrases = text.partition(self.before)
        self.hints.append(join_hints([phrases.rstrip().removesuffix(self.after)]) if found else None)
        return torch.tensor([[EOS, HINT + len(self.hints) - 1]])


class ScriptedModel:
    """`generate()` of a script: one call after the other, each with the noise of its number."""

    def __init__(self, script: Script, tokenizer: ScriptedTokenizer, is_second: bool, returns_prefix: bool):
        self.script, self.tokenizer, self.is_second = script, tokenizer, is_second
        self.returns_prefix = returns_prefix
        self.calls = 0

    def generate(
        self,
        prefix: torch.Tensor | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        do_sample: bool,
        temperature: float,
        max_new_tokens: int,
        **ignored: Any,
    ) -> SimpleNamespace:
        given = prefix if prefix is not None else input_ids
        assert given is not None and do_sample == (temperature > 0)
        row = given[0].tolist()
        hints = [i for i in row if i >= HINT]
        answer = row[PROMPT + len(hints) :]
        hint = self.tokenizer.hints[hints[0] - HINT] if hints else None
        said: list[int] = []
        steps: list[torch.Tensor] = []
        while len(said) < max_new_tokens and EOS not in said:
            logits = self.script.logits((*answer, *said), hint, self.is_second)
            steps.append(torch.tensor([logits]))
            position = len(answer) + len(said)
            said.append(self.script.choose(logits, temperature, position, self.calls, self.is_second))
        self.calls += 1
        sequence = row + said if self.returns_prefix else said
        return SimpleNamespace(sequences=torch.tensor([sequence]), logits=tuple(steps))


class AnyImage:
    """Stands for the picture, which the scripts do not look at."""

    def to(self, **ignored: Any) -> AnyImage:
        return self


def run_published(module: ModuleType, branch: str, script: Script) -> Outcome:
    """A script through the published loop and the second question that its evaluation asks."""
    text, calls = _ask(module, branch, script, is_second=False)
    if script.open_ended and text == "":
        text, more = _ask(module, branch, script, is_second=True)
        calls += more
        if text == "":
            return Outcome((FALLBACK_ID,), calls)
    return Outcome(visible_ids(text), calls)


def _ask(module: ModuleType, branch: str, script: Script, is_second: bool) -> tuple[str, int]:
    tokenizer = ScriptedTokenizer(module.GENERAL_QUERY_REWRITING_PROMPT)
    model = ScriptedModel(script, tokenizer, is_second, returns_prefix=branch == "qwenvl")
    prompt = torch.full((1, PROMPT), EOS)
    arguments = SimpleNamespace(
        un_threshold=script.threshold,
        max_total_generation_attempts=script.max_attempts,
        max_local_generation_attempts=script.local_attempts,
        temperature=script.temperature,
        temperature_step=script.temperature_step,
        max_new_tokens=script.max_new_tokens,
        open_ended_qa=script.open_ended,
        conv_mode="vicuna_v1",
        top_p=None,
        num_beams=1,
        verbose=False,
    )
    if branch == "llava":
        given: tuple[Any, ...] = (prompt, AnyImage(), None)
    else:
        given = (SimpleNamespace(input_ids=prompt, pixel_values=None, image_grid_thw=None),)
    loop = module.retrospective_resampling_generate
    text, _, _ = loop(model, tokenizer, *given, arguments, add_open_ended_qa_prompt=is_second)
    return text, model.calls


# ---------------------------------------------------------------------- the comparison
def describe(script: Script) -> list[str]:
    """What happens in a script, for the counts that show what the comparison covers."""
    policy = make_policy(script)
    reason = run_policy(script, policy).reason
    kinds = {attempt.kind for attempt in policy.answer.attempts}
    found = [f"finished: {reason}", *sorted(f"attempts: {kind}" for kind in kinds)]
    if not kinds:
        found.append("attempts: none")
    if policy.calls - len(policy.answer.attempts) - (reason != "exhausted"):
        found.append("accepted a retry and went on")
    if any(attempt.to < attempt.at for attempt in policy.answer.attempts):
        found.append("cut at a sentence end or to the start")
    if script.open_ended and not visible_ids(decode([i for i in policy.answer.ids if i > UN])):
        found.append("second question")
    if len(policy.answer.ids) > script.max_new_tokens:
        found.append("longer than one call")
    return found


def compare(path: Path, first: int, count: int) -> dict[str, Any]:
    """Run `count` scripts through both sides; counts of what is equal, and the scripts that are not."""
    torch.set_num_threads(1)
    modules = load_published(path)
    equal: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    differing: list[dict[str, Any]] = []
    calls = 0
    for seed in range(first, first + count):
        script = Script.make(seed)
        ours = run_released(script)
        theirs = {branch: run_published(module, branch, script) for branch, module in modules.items()}
        equal.update(branch for branch, outcome in theirs.items() if outcome == ours)
        equal["both"] += all(outcome == ours for outcome in theirs.values())
        if any(outcome != ours for outcome in theirs.values()):
            outcomes = {name: asdict(each) for name, each in {"ours": ours, **theirs}.items()}
            differing.append({"script": asdict(script), **outcomes})
        covered.update(describe(script))
        calls += ours.calls
    return {"equal": equal, "calls": calls, "covered": covered, "differing": differing}


def compare_all(path: Path, first: int, count: int, workers: int, chunk: int = 50) -> dict[str, Any]:
    """`compare` in several processes."""
    starts = range(first, first + count, chunk)
    counts = [min(chunk, first + count - start) for start in starts]
    equal: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    differing: list[dict[str, Any]] = []
    calls = done = 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for size, found in zip(counts, pool.map(compare, repeat(path), starts, counts), strict=True):
            equal.update(found["equal"])
            covered.update(found["covered"])
            differing += found["differing"]
            calls, done = calls + found["calls"], done + size
            print(f"{done} of {count}, {equal['both']} equal", flush=True)
    return {
        "scripts": count,
        "first": first,
        "equal": {name: equal[name] for name in (*BRANCHES, "both")},
        "calls": calls,
        "covered": dict(sorted(covered.items())),
        "differing": differing[:20],
    }


def update_golden(modules: dict[str, ModuleType], path: Path) -> None:
    """Record anew what the published code makes of the scripts in `path`: visible ids, number of calls.

    Raises RuntimeError if its two branches disagree.
    """
    rows = []
    for seed in (row["seed"] for row in json.loads(path.read_text(encoding="utf-8"))["scripts"]):
        outcomes = {run_published(module, branch, Script.make(seed)) for branch, module in modules.items()}
        if len(outcomes) != 1:
            raise RuntimeError(f"the published branches disagree on script {seed}: {outcomes}")
        outcome = outcomes.pop()
        rows.append(json.dumps({"seed": seed, "calls": outcome.calls, "ids": outcome.ids}))
    head = json.dumps(COMMIT)
    path.write_text(f'{{"commit": {head}, "scripts": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf-8")


def main() -> None:
    from reverse.evaluation.runs.environment import describe_environment
    from reverse.files.atomic_write import write_json

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--published", type=Path, required=True, help="a checkout of the published code")
    parser.add_argument("--count", type=int, default=2000, help="scripts")
    parser.add_argument("--first", type=int, default=0, help="number of the first script")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--update-golden", action="store_true", help=f"only record {GOLDEN.name} anew")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        modules = load_published(given.published)
    except ValueError as error:
        parser.error(str(error))
    if given.update_golden:
        update_golden(modules, GOLDEN)
        return
    found = compare_all(given.published, given.first, given.count, given.workers)
    claims = {f"released_equal_of_{given.count}": found["equal"]["both"]}
    content = {
        **describe_environment("cpu"),
        "command": "python benchmarks/fidelity.py --published PATH",
        "published_commit": find_commit(given.published),
        "claims": claims,
        **found,
    }
    write_json(given.results, content)
    print(json.dumps(claims))


if __name__ == "__main__":
    main()
