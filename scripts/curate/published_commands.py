"""The flags of published curation commands, answered by `reverse curate`.

    python -m scripts.curate.published_commands eval_answer --input_path questions.jsonl --model_type local …

eval_answer, eval_reflection and eval_extract_description are SRPO's, assign_value_tree is TSST's. Flags
without
effect here are named in one line on stderr. The published environment variables ENDPOINT_URL,
DEPLOYMENT_NAME,
API_KEY and API_VERSION are read where REVERSE_LLM_… are not set.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reverse.cli import app
from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft, Verdict
from reverse.data.drafts.formats import FORMATS
from reverse.data.drafts.item_files import BadItem, FileLayout, read_items
from reverse.errors import DataError, RequestError, ReverseError

ENVIRONMENT = {
    "ENDPOINT_URL": "REVERSE_LLM_BASE_URL",
    "DEPLOYMENT_NAME": "REVERSE_LLM_MODEL",
    "API_KEY": "REVERSE_LLM_KEY",
}
NO_EFFECT = {
    "checkpoint_interval": "every reply is kept as it comes",
    "incorrect_prefix": "there are no files of parts",
    "correct_prefix": "there are no files of parts",
    "reflection_prefix": "there are no files of parts",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one published command; return its exit code."""
    name, *flags = sys.argv[1:] if arguments is None else arguments
    try:
        return COMMANDS[name](flags)
    except (ReverseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def eval_answer(flags: Sequence[str]) -> int:
    """Answer questions and sort the answers into right and wrong ones; unknown ones are in neither file."""
    parser = _make_parser("eval_answer")
    for kind in ("incorrect", "correct"):
        parser.add_argument(f"--{kind}_prefix")
        parser.add_argument(f"--{kind}_final", type=Path, default=Path(f"{kind}_answers.jsonl"))
    given = parser.parse_args(flags)
    _name_flags_without_effect(given)
    questions, answers = _work_files(given.input_path, given.correct_final)
    _import("srpo-questions", given.input_path, questions)
    code = _curate("answer-eval", questions, answers, given)
    if code:
        return code
    for verdict, path in (("right", given.correct_final), ("wrong", given.incorrect_final)):
        count = FORMATS["srpo-answers"].write(_pick_answers(answers, verdict), path)
        print(f"{path}: {count} answers")
    return 0


def eval_reflection(flags: Sequence[str]) -> int:
    """Reflect on answers of eval_answer and write the conversations of SRPO's cold start."""
    parser = _make_parser("eval_reflection")
    parser.add_argument("--image_description_path", type=Path)
    parser.add_argument("--upload_image", nargs="?", const="true")
    parser.add_argument("--reflection_prefix")
    parser.add_argument(
        "--reflection_final", "--output_path", type=Path, default=Path("reflection_answers.jsonl")
    )
    given = parser.parse_args(flags)
    _name_flags_without_effect(given)
    answers, reflections = _work_files(given.input_path, given.reflection_final)
    _import("srpo-answers", given.input_path, answers)
    further = []
    if given.image_description_path is not None:
        further += ["--image-descriptions", given.image_description_path]
    if given.upload_image is not None and given.upload_image.lower() not in ("false", "0", "no"):
        further.append("--upload-image")
    code = _curate("reflection-eval", answers, reflections, given, further)
    if code:
        return code
    count = FORMATS["srpo-sft"].write(read_drafts(reflections), given.reflection_final)
    print(f"{given.reflection_final}: {count} conversations")
    return 0


def eval_extract_description(flags: Sequence[str]) -> int:
    """Find descriptions of pictures in the texts of a published file."""
    parser = argparse.ArgumentParser("eval_extract_description", allow_abbrev=False)
    parser.add_argument("--source", choices=("mulberry", "cot100k"), default="cot100k")
    parser.add_argument("--input_path", type=Path, required=True)
    parser.add_argument("--pattern")
    parser.add_argument("--output_path", type=Path, required=True)
    parser.add_argument("--content_key", default="content")
    given = parser.parse_args(flags)
    texts = given.output_path.with_name(given.output_path.name + ".texts.jsonl")
    write_drafts(texts, _read_texts(given.input_path, given.content_key))
    pattern = given.pattern if given.pattern is not None else given.source
    return _run("curate", "image-description", texts, given.output_path, "--pattern", pattern)


def assign_value_tree(flags: Sequence[str]) -> int:
    """Value the beginnings of verified answers, as TSST's value model trains on them."""
    parser = argparse.ArgumentParser("assign_value_tree", allow_abbrev=False)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(flags)
    count = FORMATS["tsst-value"].write(FORMATS["tsst-beam"].read(given.input), given.output)
    print(f"{given.output}: {count} values")
    return 0


COMMANDS = {
    each.__name__: each
    for each in (eval_answer, eval_reflection, eval_extract_description, assign_value_tree)
}


def _make_parser(name: str) -> argparse.ArgumentParser:
    """The flags of both commands that ask a model."""
    parser = argparse.ArgumentParser(name, allow_abbrev=False)
    parser.add_argument("--model", help="checkpoint with --model_type local, else a name at ENDPOINT_URL")
    parser.add_argument("--model_type", choices=("remote", "local"), default="remote")
    parser.add_argument("--platform", choices=("VLLM", "OpenAI", "Azure", "Aliyun"), default="VLLM")
    parser.add_argument("--input_path", type=Path, required=True)
    parser.add_argument("--image_dir", type=Path)
    parser.add_argument("--image_url")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--concurrent_tasks", type=int, default=None)
    parser.add_argument("--checkpoint_interval", type=int)
    return parser


def _name_flags_without_effect(given: argparse.Namespace) -> None:
    """Name the flags that were given and do nothing, in one line on stderr."""
    reasons = {
        **NO_EFFECT,
        ("concurrent_tasks" if given.model_type == "local" else "batch_size"): "there is one limit: "
        + ("--batch_size" if given.model_type == "local" else "--concurrent_tasks"),
    }
    found = [f"--{name} ({why})" for name, why in reasons.items() if getattr(given, name, None) is not None]
    if found:
        print(f"without effect: {', '.join(found)}", file=sys.stderr)


def _curate(
    command: str, source: Path, out: Path, given: argparse.Namespace, further: Sequence[Any] = ()
) -> int:
    """Run a command of `reverse curate` as the published flags say."""
    words: list[Any] = ["curate", command, source, out, *further]
    if given.image_dir is not None:
        words += ["--images", given.image_dir]
    if given.image_url is not None:
        words += ["--image-url", given.image_url]
    if given.model_type == "local":
        if given.model is None:
            raise RequestError("--model_type local needs --model: name the folder of a checkpoint")
        return _run(*words, "--model", given.model, "--concurrency", given.batch_size or 4)
    _set_environment(given, os.environ)
    return _run(*words, "--concurrency", given.concurrent_tasks or 4)


def _set_environment(given: argparse.Namespace, environment: Any) -> None:
    """Pass the published environment variables on to those of the library."""
    for published, own in ENVIRONMENT.items():
        if environment.get(published, "").strip():
            environment.setdefault(own, environment[published])
    if given.model is not None:
        environment["REVERSE_LLM_MODEL"] = given.model
    if given.platform == "Azure" and environment.get("API_VERSION", "").strip():
        environment.setdefault("REVERSE_LLM_API_VERSION", environment["API_VERSION"])


def _work_files(source: Path, out: Path) -> tuple[Path, Path]:
    """The draft files on the way to a published file; they stay, so that the next start goes on."""
    return out.with_name(f"{source.stem}.drafts.jsonl"), out.with_name(f"{out.name}.drafts.jsonl")


def _import(name: str, source: Path, out: Path) -> None:
    write_drafts(out, FORMATS[name].read(source))


def _pick_answers(path: Path, verdict: str) -> Iterator[DraftRecord]:
    """The records that have answers of a verdict, with no others."""
    for record in read_drafts(path):
        kept = tuple(draft for draft in record.drafts if draft.verdict == verdict)
        if kept:
            yield record.model_copy(update={"drafts": kept, "links": ()})


def _read_texts(path: Path, key: str) -> Iterator[DraftRecord]:
    """Items with a picture and a text, or a list of turns whose texts are joined, as draft records."""
    for item in read_items(path, FileLayout()):
        if isinstance(item, BadItem):
            raise DataError(f"{path}, {item.where}: {item.reason}: mend or remove it")
        value = item.value if isinstance(item.value, dict) else {}
        text, image = _join_turns(value.get(key)), value.get("image")
        if text is None or not isinstance(image, str):
            raise DataError(
                f"{path}, {item.where}: an item has an `image` and a text under {key!r}, this one has "
                f"{', '.join(map(str, value))[:200] or 'neither'}: name the key with --content_key"
            )
        verdict: Verdict = "unknown"
        draft = RecordedDraft(text=text, role="rationale", verdict=verdict)
        yield DraftRecord(id=f"{path.stem}-{item.number}", question="", images=(image,), drafts=(draft,))


def _join_turns(value: Any) -> str | None:
    """A text, or the texts of a conversation's turns."""
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, Mapping)]
        return "\n".join(str(turn.get("value", turn.get("content", ""))) for turn in turns)
    return value if isinstance(value, str) else None


def _run(*words: Any) -> int:
    """Run a command of `reverse`; its errors are one line, as always."""
    try:
        return app([str(word) for word in words], standalone_mode=False) or 0
    except SystemExit as ended:
        return int(ended.code or 0)


if __name__ == "__main__":
    sys.exit(main())
