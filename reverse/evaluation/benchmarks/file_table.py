"""Show where benchmark files belong and which are missing: `reverse eval --where [BENCH…] [--data PATH]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reverse.evaluation.benchmarks.benchmark import Benchmark

__all__ = ["tabulate_files"]


def tabulate_files(chosen: Sequence[Benchmark], root: str | Path) -> tuple[Any, list[str]]:
    """Make a Rich table of files and picture folders; also return the names of benchmarks that can be run."""
    from rich.table import Table

    root = Path(root)
    table = Table(title=f"under {root}", title_justify="left")
    for column in ("benchmark", "file or folder", "what it is", "where it is published"):
        table.add_column(column, overflow="fold", no_wrap=column == "file or folder")
    table.add_column("", no_wrap=True)
    ready = []
    for benchmark in chosen:
        found = benchmark.found(root)
        folder = benchmark.image_folder(root)
        absent, stopping = benchmark.missing(root, ("run", "score")), benchmark.missing(root)
        other = {name for names in benchmark.alternatives for name in names}
        for number, (name, file) in enumerate(benchmark.files.items()):
            place = found[name].relative_to(root).as_posix() if name in found else file.places[0]
            if name in found:
                state = "[green]there[/]"
            elif file not in absent:
                state = "[dim]not needed[/]"
            elif file in stopping:
                state = "[red]this or another[/]" if name in other else "[red]missing[/]"
            else:
                state = "[yellow]missing, to score[/]"
            table.add_row(benchmark.name if number == 0 else "", place, file.description, file.source, state)
        inside = benchmark.pictures_in in found and folder is None
        if inside:
            shown = f"inside the {benchmark.pictures_in} files"
        elif folder is not None:
            shown = folder.relative_to(root).as_posix() + "/"
        else:
            shown = benchmark.images[0] + "/"
        state = "[green]there[/]" if folder or inside else "[red]missing[/]"
        table.add_row("", shown, "pictures", benchmark.images_source, state, end_section=True)
        if not benchmark.missing(root) and (folder or inside):
            ready.append(benchmark.name)
    return table, ready
