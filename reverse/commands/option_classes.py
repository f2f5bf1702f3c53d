"""Commands whose options are the fields of a dataclass, instead of a function with twenty parameters.

@dataclass(frozen=True)
class ReportOptions:
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")]
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0

def report(options: ReportOptions) -> None: ...

app.command()(make_command(report, ReportOptions))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

__all__ = ["make_command"]

Options = TypeVar("Options")


def make_command(run: Callable[[Options], None], options: type[Options]) -> Callable[..., None]:
    """Return a function for Typer with one parameter per field of `options` and the docstring of `run`."""

    def command(**given: Any) -> None:
        run(options(**given))

    hints = get_type_hints(options, include_extras=True)
    parameters = inspect.signature(options).parameters.values()
    command.__name__, command.__doc__ = run.__name__, run.__doc__
    command.__annotations__ = hints
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for each in parameters
        ]
    )
    return command
