"""The command line: every command turns its options into one call of the library and prints the result.

    reverse demo
    reverse generate tiny-llava --image kitchen.png --prompt "Describe this image."

Heavy imports stand inside the commands, so that `reverse --help` is there at once. A `ReverseError` and an
error of the operating system become one line on stderr, or a line and a list, and exit code 2;
`reverse --debug …` or REVERSE_DEBUG=1 shows the traceback instead. Any other exception is a bug: it shows its
traceback and asks for a report.
"""

import errno
import functools
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
    generate_command,
    making_commands,
    train_command,
)
from reverse.commands import score_command as scoring
from reverse.commands.curate import curate_command
from reverse.commands.option_checks import check_decoding
from reverse.commands.runtime_setup import silence_libraries
from reverse.commands.selftrain import selftrain_command
from reverse.commands.statistics import statistics_commands
from reverse.errors import RequestError, ReverseError
from reverse.progress import show_phases, show_progress

BUG = "this is a bug of reverse-vlm: please report it with the lines above and the command that you ran"


class _Commands(TyperGroup):
    """All commands. An error that the library explains is printed as one line."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        for command in self.commands.values():
            _check_numbers(command)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            message = _explain_error(error)
            if message is None and not hasattr(error, "exit_code"):
                traceback.print_exception(error)
                _print_error(BUG)
                raise typer.Exit(1) from error
            if message is None or ctx.params.get("debug"):
                raise
            _print_error(message)
            raise typer.Exit(2) from error


def _explain_error(error: Exception) -> str | None:
    """Return the line for an error that is not a bug, or None."""
    found = _explain_system_error(error) or _explain_option_error(error)
    if found is None and isinstance(error, ReverseError):
        return str(error)
    return found


def _print_error(message: str) -> None:
    """Print an error on stderr as one line. Items of a list, after two spaces, keep their lines."""
    message = "\n  ".join(" ".join(part.split()) for part in re.split(r"\n  (?=\S)", message))
    shown = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", _escape, message)
    Console(stderr=True).print(Text(f"error: {shown}", style="red"), soft_wrap=True)


def _escape(match: re.Match[str]) -> str:
    """Return a control character or a surrogate as a Python escape."""
    return match.group().encode("unicode_escape").decode("ascii")


def _explain_system_error(error: Exception) -> str | None:
    """Return the path and the remedy for an error of the operating system, or None."""
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


def _explain_option_error(error: Exception) -> str | None:
    """Return the parser's message about a wrong option or command with the value, or None.

    The parser's own message about a number leaves the value out.
    """
    if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
        return None
    message = str(error.format_message()).strip().rstrip(".")
    causes = getattr(error.__cause__, "errors", None)
    values = [repr(cause.get("input"))[:80] for cause in causes()] if callable(causes) else []
    told = [value for value in values if value.strip("'") not in message or value == "''"]
    if told:
        message = f"{message}, got {told[0]}"
    path = getattr(getattr(error, "ctx", None), "command_path", "reverse")
    return f"{message}: see `{path} --help`"


def _check_numbers(command: Any) -> None:
    """Make a command refuse numbers that are NaN, infinite, or larger than 64 bits."""
    for inner in getattr(command, "commands", {}).values():
        _check_numbers(inner)
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
selftrain_command.register(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"reverse {__version__}")
        raise typer.Exit


@app.callback()
def _read_global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option(envvar="REVERSE_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Decode with vision-language models that take back phrases they are unsure of."""


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="Checkpoint folder, hub id or bundled name.")] = "tiny-llava",
    threshold: Annotated[
        float | None,
        typer.Option(help="Reject phrases with a p(</UN>) above it. Default: the checkpoint's threshold."),
    ] = None,
) -> None:
    """Show what a model says about three unseen pictures, and what it takes back."""
    silence_libraries()
    check_decoding(threshold=threshold)
    from reverse.demo import show_demo

    show_demo(Console(), model, threshold)


generate_command.register(app)


@tokens.command("add")
def tokens_add(
    base: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
    init: Annotated[
        str,
        typer.Option(
            help="Start of the new embedding rows: mean (of all rows), or a phrase whose rows are averaged."
        ),
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Random seed of the noise on the new rows.")] = 0,
) -> None:
    """Write a copy of BASE with the tokens <SPAN>, </CN> and </UN>."""
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
    out: Annotated[Path, typer.Argument(help="Folder to write. A stopped run is continued.")],
    split: Annotated[str, typer.Option(help="train, val, test or shift.")] = "train",
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the scenes.")] = 0,
    workers: Annotated[int, typer.Option(help="Number of worker processes.")] = 1,
    benches: Annotated[
        bool, typer.Option("--benches", help="Also write the files of all benchmarks.")
    ] = False,
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
curate_command.register(app)
scoring.register(app, data)


def main() -> None:
    """Entry point of `reverse` and of `python -m reverse`."""
    app()


if __name__ == "__main__":
    main()
