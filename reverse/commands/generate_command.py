"""`reverse generate`: answer one prompt about one or several pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from reverse.commands.option_checks import build_mode, check_decoding, check_request
from reverse.commands.option_classes import make_command
from reverse.commands.runtime_setup import resolve_placement, silence_libraries
from reverse.commands.shared_options import (
    Candidates,
    Device,
    Dtype,
    Gate,
    Hints,
    Judge,
    OnExhausted,
    Rounds,
    SampledTemperature,
    Samples,
    Seed,
)
from reverse.decoding.mode_names import MODE_NAMES, list_names
from reverse.errors import RequestError

__all__ = ["GenerateOptions", "register"]


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `reverse generate`."""

    model: Annotated[str, typer.Argument(help="Checkpoint folder, hub id or bundled name.")]
    image: Annotated[
        list[str] | None, typer.Option(help="Path of a picture. Repeat the option to ask about several.")
    ] = None
    prompt: Annotated[str, typer.Option(help="Question about the pictures.")] = "Describe this image."
    system: Annotated[str | None, typer.Option(help="System turn before the question.")] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer with phrases, attempts and usage as JSON.")
    ] = False
    stream: Annotated[
        bool, typer.Option("--stream", help="Print pieces of text as soon as they are final.")
    ] = False
    threshold: Annotated[
        float | None,
        typer.Option(help="Reject phrases with a p(</UN>) above it. Default: the checkpoint's threshold."),
    ] = None
    max_new_tokens: Annotated[
        int, typer.Option(help="Largest number of tokens in the answer, tags included.")
    ] = 256
    max_attempts: Annotated[
        int,
        typer.Option(
            help="Largest number of rejections in the answer. 0 checks phrases without correcting them."
        ),
    ] = 50
    hints: Hints = 5
    candidates: Candidates = 1
    commit: Annotated[str, typer.Option(help="How far back a rewind may go: phrase, sentence or answer.")] = (
        "sentence"
    )
    on_exhausted: OnExhausted = "best"
    mode: Annotated[
        str,
        typer.Option(help=f"{list_names(MODE_NAMES)}. See docs/modes.md."),
    ] = "resample"
    n: Samples = None
    rounds: Rounds = None
    gate: Gate = None
    judge: Judge = None
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Sample instead of decoding greedily.")] = (
        False
    )
    temperature: SampledTemperature = None
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest tokens with this probability. 1 keeps all.")
    ] = 1.0
    seed: Seed = 0
    device: Device = None
    dtype: Dtype = None


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(make_command(generate, GenerateOptions))


def generate(options: GenerateOptions) -> None:
    """Answer one prompt about one or several pictures."""
    silence_libraries()
    if options.stream and options.as_json:
        raise RequestError("--stream prints text as it comes and --json the whole answer: choose one of them")
    names = (
        "threshold", "hints", "on_exhausted", "max_attempts", "candidates", "commit", "top_p", "seed", "mode",
        "max_new_tokens", "do_sample", "temperature",
    )  # fmt: skip
    settings = {name: getattr(options, name) for name in names}
    check_decoding(**settings)
    own = {name: getattr(options, name) for name in ("n", "rounds", "gate", "judge")}
    settings["mode"] = build_mode(
        options.mode, {name: value for name, value in own.items() if value is not None}
    )
    pictures = check_request(options.image or [], options.prompt, options.system)
    device, dtype = resolve_placement(options.device, options.dtype)
    from reverse import load

    model, processor = load(options.model, device=device, dtype=dtype)
    if not pictures:
        typer.echo("no --image is given: the question is answered without a picture", err=True)
    if not options.do_sample or options.temperature is None:
        settings["temperature"] = 1.0
    ask = _stream_answer if options.stream else _answer
    result = ask(model, processor, [pictures], [options.prompt], system=options.system, **settings)
    if options.as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    if not options.stream:
        _print_answer(result)
    if result.resolved is False:
        Console(stderr=True).print(Text("a phrase stayed suspect (resolved: no)", style="yellow"))


def _answer(*request: Any, **settings: Any) -> Any:
    from reverse import generate

    return generate(*request, **settings)[0]


def _stream_answer(*request: Any, **settings: Any) -> Any:
    """Print the answer while it is made; return its result."""
    from reverse import stream

    with stream(*request, **settings) as pieces:
        for piece in pieces:
            typer.echo(piece, nl=False)
        typer.echo()
        return pieces.result[0]


def _print_answer(result: Any) -> None:
    shown = Text(result.text)
    for phrase in result.phrases:
        if phrase.status == "unresolved":
            shown.stylize("yellow underline", phrase.start, phrase.end)
    Console().print(shown, soft_wrap=True)
