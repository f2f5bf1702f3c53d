"""What to put where, and what is missing: `reverse eval --where [BENCH…] [--data PATH]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reverse.evaluation.benchmarks.benchmark import Bench

__all__ = ["where"]


def where(benches: Sequence[Bench], root: str | Path) -> tuple[Any, list[str]]:
    """A Rich table of files and picture folders, and the names of the benchmarks that can be run."""
    from rich.table import Table

    root = Path(root)
    table = Table(title=f"under {root}", title_justify="left")
    for column in ("benchmark", "file or folder", "what it is", "where it is published"):
        table.add_column(column, overflow="fold", no_wrap=column == "file or folder")
    table.add_column("", no_wrap=True)
    ready = []
    for bench in benches:
        found = bench.found(root)
        folder = bench.image_folder(root)
        absent, stopping = bench.missing(root, ("run", "score")), bench.missing(root)
        other = {name for names in bench.alternatives for name in names}
        for number, (name, file) in enumerate(bench.files.items()):
            place = found[name].relative_to(root).as_posix() if name in found else file.places[0]
            if name in found:
                state = "[green]there[/]"
            elif file not in absent:
                state = "[dim]not needed[/]"
            elif file in stopping:
                state = "[red]this or another[/]" if name in other else "[red]missing[/]"
            else:
                state = "[yellow]missing, to score[/]"
            table.add_row(bench.name if number == 0 else "", place, file.what, file.source, state)
        inside = "parquet" in found and folder is None
        shown = "inside the parquet files" if inside else _short(folder, root) or bench.images[0] + "/"
        state = "[green]there[/]" if folder or inside else "[red]missing[/]"
        table.add_row("", shown, "pictures", bench.images_source, state, end_section=True)
        if not bench.missing(root) and (folder or inside):
            ready.append(bench.name)
    return table, ready


def _short(folder: Path | None, root: Path) -> str:
    if folder is None:
        return ""
    return folder.relative_to(root).as_posix() + "/"
