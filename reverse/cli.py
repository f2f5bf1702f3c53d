"""The commands: each turns its options into one call of the library, and what comes back into lines.

    reverse demo
    reverse generate tiny-llava --image kitchen.png --prompt "Describe this image."

Heavy imports stand inside the commands, so that `reverse --help` is there at once. A `ReverseError` and an
error of the operating system become one line on stderr, or a line and a list, and exit code 2;
`reverse --debug …` or REVERSE_DEBUG=1 shows the traceback instead. Any other exception is a bug: it shows its
traceback and asks for a report.
"""

import errno
import functools
import json
import math
import re
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from reverse import __version__
from reverse.commands import (
    checkpoint_commands,
    data_commands,
    eval_command,
    making_commands,
    statistics_commands,
    train_command,
)
from reverse.commands import score_command as scoring
from reverse.commands.option_checks import check_decoding, check_request
from reverse.commands.runtime_setup import resolve_placement, silence_libraries
from reverse.errors import RequestError, ReverseError
from reverse.progress import show_phases, show_progress

BUG = "this is a bug of reverse-vlm: please report it with the lines above and the command that you ran"


class _Commands(TyperGroup):
    """All commands; an error that the library explains becomes one line, and a list in it stays one."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        for command in self.commands.values():
            _bound_numbers(command)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            said = _explain_error(error)
            if said is None and not hasattr(error, "exit_code"):
                traceback.print_exception(error)
                _print_error(BUG)
                raise typer.Exit(1) from error
            if said is None or ctx.params.get("debug"):
                raise
            _print_error(said)
            raise typer.Exit(2) from error


def _explain_error(error: Exception) -> str | None:
    """The line for an error that is no bug; None for any other."""
    found = _system_error(error) or _wrong_option(error)
    if found is None and isinstance(error, ReverseError):
        return str(error)
    return found


def _print_error(message: str) -> None:
    """One line on stderr; items of a list, which begin with two spaces, keep theirs."""
    # transformers breaks its lines anywhere
    said = "\n  ".join(" ".join(part.split()) for part in re.split(r"\n  (?=\S)", message))
    shown = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", _escape, said)
    Console(stderr=True).print(Text(f"error: {shown}", style="red"), soft_wrap=True)


def _escape(match: re.Match[str]) -> str:
    """What would move the cursor, colour the terminal or cannot be encoded, as Python writes it."""
    return match.group().encode("unicode_escape").decode("ascii")


def _system_error(error: Exception) -> str | None:
    """What to do about an error of the operating system that nobody has explained; None for any other."""
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # Python below 3.13
        error = OSError(errno.ELOOP, "", str(error).partition("'")[2].rstrip("'"))
    if not isinstance(error, OSError) or error.errno is None or not str(error).startswith("[Errno "):
        return None
    path = f"{str(error.filename)!r:.200}" if error.filename is not None else "a file"
    remedies = {
        errno.ENOENT: "there is no such file or folder: check the path",
        errno.EEXIST: "it is there already, as a file: name another folder",
        errno.ENOTDIR: "part of the path is a file and no folder: name another folder",
        errno.EISDIR: "it is a folder: name a file in it",
        errno.EACCES: "this user may not read or write it: name another place, or change its rights",
        errno.EPERM: "this user may not read or write it: name another place, or change its rights",
        errno.EROFS: "the disk can only be read: name another place",
        errno.ENOSPC: "the disk is full: make room, and start again",
        errno.EDQUOT: "the quota is used up: make room, and start again",
        errno.ENAMETOOLONG: "the name is too long: give the path of a file",
        errno.ELOOP: "its links lead in a circle: remove one of them",
    }
    return f"{path}: {remedies.get(error.errno, f'{error.strerror}: check the path and the disk')}"


def _wrong_option(error: Exception) -> str | None:
    """What the parser says of a wrong option or command, with the value; None where it did not raise this.

    Its own message of a number that is none, or out of range, leaves the value out.
    """
    if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
        return None
    said = str(error.format_message()).strip().rstrip(".")
    causes = getattr(error.__cause__, "errors", None)
    values = [repr(cause.get("input"))[:80] for cause in causes()] if callable(causes) else []
    told = [value for value in values if value.strip("'") not in said or value == "''"]
    if told:
        said = f"{said}, got {told[0]}"
    path = getattr(getattr(error, "ctx", None), "command_path", "reverse")
    return f"{said}: see `{path} --help`"


def _bound_numbers(command: Any) -> None:
    """Have all commands refuse numbers that are NaN, infinite, or larger than a machine word."""
    for inner in getattr(command, "commands", {}).values():
        _bound_numbers(inner)
    if command.callback is None:
        return
    run, names = command.callback, {each.name: each.opts[0] for each in command.params}

    @functools.wraps(run)
    def checked(*arguments: Any, **given: Any) -> Any:
        for name, value in given.items():
            if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < 1 << 63):
                shown = f"{value:.3g}" if isinstance(value, float) else f"{str(value)[:40]}"
                raise RequestError(
                    f"{names.get(name, name)} must be a finite number below 2**63, got {shown}"
                )
        return run(*arguments, **given)

    command.callback = checked


app = typer.Typer(name="reverse", cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)
tokens = typer.Typer(no_args_is_help=True, help="The three tokens of a checkpoint.")
data = typer.Typer(no_args_is_help=True, help="Make and prepare data.")
app.add_typer(tokens, name="tokens")
app.add_typer(data, name="data")
making_commands.register(data)
train_command.register(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"reverse {__version__}")
        raise typer.Exit


@app.callback()
def _everything(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option(envvar="REVERSE_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """A vision-language model that takes back what it should not have said."""


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="Checkpoint folder, hub id or bundled name.")] = "tiny-llava",
    threshold: Annotated[
        float | None, typer.Option(help="p(</UN>) above which a phrase is rejected; else the checkpoint's.")
    ] = None,
) -> None:
    """Three pictures the model has never seen: what it says, what it takes back, and why."""
    silence_libraries()
    check_decoding(threshold=threshold)
    from reverse.demo import show

    show(Console(), model, threshold)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, hub id or bundled name.")],
    image: Annotated[
        list[str] | None, typer.Option(help="A picture; repeat it to ask about several at once.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="The question.")] = "Describe this image.",
    system: Annotated[str | None, typer.Option(help="Instruction that stands before the question.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Phrases, attempts and costs as JSON.")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print pieces as they come; none is taken back.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="p(</UN>) above which a phrase is rejected; else the checkpoint's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens of the answer, tags included.")] = 256,
    max_attempts: Annotated[
        int, typer.Option(help="The most rejections in the answer; 0: check, never correct.")
    ] = 50,
    hints: Annotated[int, typer.Option(help="Rejected phrases that the prompt names; 0: none.")] = 5,
    candidates: Annotated[int, typer.Option(help="Continuations tried side by side.")] = 1,
    commit: Annotated[
        str, typer.Option(help="How far back a rewind may go: phrase, sentence or answer.")
    ] = "sentence",
    on_exhausted: Annotated[
        str, typer.Option(help="For a phrase that stays suspect: best or drop.")
    ] = "best",
    mode: Annotated[str, typer.Option(help="resample checks and corrects; plain does not.")] = "resample",
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Sample from the start.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of --do-sample; else 1.")] = None,
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest tokens of this probability; 1: all.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str | None, typer.Option(help="As torch names it; else cuda or cpu.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; else as saved.")] = None,
) -> None:
    """Answer one prompt about one or several pictures."""
    silence_libraries()
    settings: dict[str, Any] = {
        "threshold": threshold, "hints": hints, "on_exhausted": on_exhausted, "max_attempts": max_attempts,
        "candidates": candidates, "commit": commit, "top_p": top_p, "seed": seed,
    }  # fmt: skip
    if stream and as_json:
        raise RequestError("--stream prints text as it comes and --json the whole answer: choose one of them")
    check_decoding(
        mode=mode, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature, **settings
    )
    pictures = check_request(image or [], prompt, system)
    where, kind = resolve_placement(device, dtype)
    from reverse import generate as answer
    from reverse import load
    from reverse import stream as stream_answer

    network, processor = load(model, device=where, dtype=kind)
    if not pictures:
        typer.echo("no --image is given: the question is answered without a picture", err=True)
    asked: dict[str, Any] = {
        "mode": mode, "max_new_tokens": max_new_tokens, "system": system, "do_sample": do_sample,
        "temperature": 1.0 if temperature is None or not do_sample else temperature, **settings,
    }  # fmt: skip
    if stream:
        with stream_answer(network, processor, [pictures], [prompt], **asked) as pieces:
            for piece in pieces:
                typer.echo(piece, nl=False)
            typer.echo()
            result = pieces.result[0]
    else:
        result = answer(network, processor, images=[pictures], prompt=[prompt], **asked)[0]
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    if not stream:
        shown = Text(result.text)
        for phrase in result.phrases:
            if phrase.status == "unresolved":
                shown.stylize("yellow underline", phrase.start, phrase.end)
        Console().print(shown, soft_wrap=True)
    if result.resolved is False:
        Console(stderr=True).print(Text("a phrase stayed suspect (resolved: no)", style="yellow"))


@tokens.command("add")
def tokens_add(
    base: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
    init: Annotated[
        str, typer.Option(help="What a new row starts from: mean, or the mean of a phrase of yours.")
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Of the noise on the new rows.")] = 0,
) -> None:
    """Write a copy of BASE that knows <SPAN>, </CN> and </UN>."""
    silence_libraries()
    from reverse.files.atomic_write import check_new
    from reverse.files.file_lock import output_lock
    from reverse.models import add_tokens_to_checkpoint

    check_new(out)
    with output_lock(out), show_phases(f"adding tokens to {base}"):
        ids = add_tokens_to_checkpoint(base, out, init=init, seed=seed)
    typer.echo(f"{out}: <SPAN> {ids.span}, </CN> {ids.cn}, </UN> {ids.un}")


@data.command("scenes")
def data_scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write; a stopped run goes on where it was.")],
    split: Annotated[str, typer.Option(help="train, val, test or shift.")] = "train",
    count: Annotated[int, typer.Option(help="How many scenes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the world.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    benches: Annotated[bool, typer.Option("--benches", help="The files of all benchmarks too.")] = False,
) -> None:
    """Write scenes with their truth in the published formats."""
    from reverse.data.scenes import write_scenes
    from reverse.data.scenes.benchmark_files import write_benchmarks

    with show_progress("scenes", count) as progress:
        write = write_benchmarks if benches else write_scenes
        manifest = write(out, split, count, seed, workers, progress)
    typer.echo(f"{out}: {manifest['count']} scenes of {manifest['split']}")


checkpoint_commands.register(app)
eval_command.register(app)
statistics_commands.register(app)
data_commands.register(data)
scoring.register(app, data)


def main() -> None:
    """Entry point of `reverse` and of `python -m reverse`."""
    app()


if __name__ == "__main__":
    main()
