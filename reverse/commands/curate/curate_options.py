"""Options of the commands of `reverse curate`, as dataclasses for `make_command`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from reverse.commands.shared_options import Limit, PriceIn, PriceOut, Seed, Timeout

__all__ = [
    "AnswerEvalOptions",
    "CurateOptions",
    "RationaleOptions",
    "ReflectionOptions",
    "SelectMixOptions",
    "SelfCorrectionOptions",
]

Temperature = Annotated[float, typer.Option(help="Temperature of the teacher. 0 takes the likeliest token.")]
MaxTokens = Annotated[int, typer.Option(help="Largest number of tokens in a reply.")]


@dataclass(frozen=True)
class CurateOptions:
    """Options that all commands that ask a teacher have."""

    source: Annotated[Path, typer.Argument(metavar="IN", help="Draft file.")]
    out: Annotated[Path, typer.Argument(help="Draft file to write, .jsonl. A stopped run continues.")]
    model: Annotated[
        str,
        typer.Option(
            help="Checkpoint folder, hub id or bundled name. Default: the model at REVERSE_LLM_BASE_URL."
        ),
    ] = "endpoint"
    images: Annotated[Path | None, typer.Option(help="Folder that the pictures' paths are relative to.")] = (
        None
    )
    image_url: Annotated[
        str | None, typer.Option(help="Address that serves the pictures, sent instead of their bytes.")
    ] = None
    image_descriptions: Annotated[
        Path | None,
        typer.Option(help="Descriptions sent instead of pictures, by `reverse curate image-description`."),
    ] = None
    upload_image: Annotated[bool, typer.Option("--upload-image", hidden=True)] = False
    temperature: Temperature = 0.0
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this probability.")] = 1.0
    max_tokens: MaxTokens = 1024
    seed: Seed = 0
    concurrency: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of requests at a time. For a checkpoint: number of answers decoded side by side.",
        ),
    ] = 16
    timeout: Timeout = 120.0
    extra: Annotated[
        str | None, typer.Option(help='JSON object of further request fields, such as {"temperature": null}.')
    ] = None
    cache: Annotated[
        Path | None, typer.Option(help="File for the teacher's replies. Default: OUT.replies.jsonl.")
    ] = None
    limit: Limit = None
    price_in: PriceIn = 0.0
    price_out: PriceOut = 0.0
    mode: Annotated[str, typer.Option(help="How a checkpoint decodes: plain or resample.")] = "plain"
    device: Annotated[str | None, typer.Option(help="Device of a checkpoint. Default: cuda or cpu.")] = None
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of a checkpoint: float32, bfloat16 or float16.")
    ] = None


@dataclass(frozen=True)
class AnswerEvalOptions(CurateOptions):
    """Options of `reverse curate answer-eval`."""

    temperature: Temperature = 0.2
    samples: Annotated[int, typer.Option(min=1, help="Number of answers to each question.")] = 1
    judge: Annotated[
        str | None,
        typer.Option(
            help="Judge of answers that grading cannot decide: a checkpoint or "
            "endpoint (REVERSE_JUDGE_BASE_URL)."
        ),
    ] = None


@dataclass(frozen=True)
class ReflectionOptions(CurateOptions):
    """Options of `reverse curate reflection-eval`."""

    second_thinking: Annotated[
        bool,
        typer.Option(
            "--second-thinking",
            help="Let the teacher also think and answer again after its reflection; that answer is verified.",
        ),
    ] = False


@dataclass(frozen=True)
class SelfCorrectionOptions(CurateOptions):
    """Options of `reverse curate self-correction`."""

    temperature: Temperature = 0.7
    max_tokens: MaxTokens = 2048
    schema: Annotated[str, typer.Option(help="Form of the second answer: cot4 (four stages) or plain.")] = (
        "cot4"
    )
    first: Annotated[str, typer.Option(help="Which first answers to correct: any, right or wrong.")] = "any"


@dataclass(frozen=True)
class SelectMixOptions(CurateOptions):
    """Options of `reverse curate select-mix`."""

    count: Annotated[int, typer.Option(help="Number of records to choose.")] = 10_000
    share_right: Annotated[float, typer.Option(help="Share of the chosen records whose answer is right.")] = (
        0.3
    )
    least_quality: Annotated[int, typer.Option(help="Lowest rating of a chosen record, 1 to 5.")] = 1
    judge: Annotated[
        bool,
        typer.Option(
            help="Let the model rate the answers. Without it, records are chosen at random by the seed."
        ),
    ] = True


@dataclass(frozen=True)
class RationaleOptions(CurateOptions):
    """Options of `reverse curate rationale`."""

    temperature: Temperature = 0.7
    style: Annotated[str, typer.Option(help="Form of the rationale: tsst or r3v.")] = "tsst"
    show_answer: Annotated[bool, typer.Option(help="Tell the teacher the right answer.")] = True
