"""Write one page and one Markdown file about folders of answers, scored files and plots.

write_report([Path("runs/ours"), Path("runs/base")], Path("report"))
# report/report.html (self-contained), report/report.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reverse.errors import DataError
from reverse.evaluation.reports.html_page import render_page
from reverse.evaluation.reports.lmms_export import export_lmms_eval
from reverse.evaluation.reports.report_tables import make_tables
from reverse.evaluation.reports.run_folder import RunFolder, read_run_folder
from reverse.evaluation.stats.bootstrap import DEFAULT_BOOTSTRAP, BootstrapSettings
from reverse.files.atomic_write import atomic_write
from reverse.files.text_reading import replace_surrogates

__all__ = ["ReportSettings", "write_report"]


@dataclass(frozen=True)
class ReportSettings:
    """The content of a report."""

    title: str = "Evaluation"
    examples: int = 6  # answers shown of each file
    images: Path | None = None  # folder of the examples' pictures
    bootstrap: BootstrapSettings = DEFAULT_BOOTSTRAP
    lmms_eval: bool = False  # also write per-sample rows of each scored file that has its answers


DEFAULT_REPORT = ReportSettings()


def write_report(folders: Sequence[Path], out: Path, settings: ReportSettings = DEFAULT_REPORT) -> list[Path]:
    """Write report.html and report.md into `out`, each atomically; returns the files.

    Raises DataError for a folder that does not exist, or if there is nothing to report.
    """
    images = settings.images
    if images is not None and not images.is_dir():
        raise DataError(f"there is no folder of pictures {images}: name one, or leave --images out")
    runs = [
        read_run_folder(folder, name, settings.examples, settings.bootstrap)
        for folder, name in zip(folders, _name_folders(folders), strict=True)
    ]
    if not any(run.scored or run.answers or run.plots for run in runs):
        unread = "; ".join(each for run in runs for each in run.unread[:1])
        raise DataError(
            f"nothing to report in {', '.join(map(str, folders))}: scored files, answers and plots are "
            "looked for there and one folder below" + (f", and not read is {unread}" if unread else "")
        )
    out.mkdir(parents=True, exist_ok=True)
    pages = {
        out / "report.html": render_page(settings.title, runs, images),
        out / "report.md": render_markdown(settings.title, runs),
    }
    for path, text in pages.items():
        with atomic_write(path) as stream:
            stream.write(replace_surrogates(text).encode("utf-8"))
    exported = [path for run in runs for path in export_lmms_eval(run, out)] if settings.lmms_eval else []
    return [*pages, *exported]


def _name_folders(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or the whole path if two share the last part."""
    short = [folder.resolve().name for folder in folders]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, folders, strict=True)]


def render_markdown(title: str, runs: Sequence[RunFolder]) -> str:
    """Return all tables of the report, and the list of unreadable files, as Markdown."""
    lines = [f"# {_escape(title)}", ""]
    for table in make_tables(runs):
        rows = [[cell.text for cell in row] for row in table.rows]
        lines += [f"## {_escape(table.title)}", ""]
        lines += [_join_cells(table.columns), "|---" * len(table.columns) + "|", *map(_join_cells, rows), ""]
    unread = [f"- {_escape(f'{run.name}: {each}')}" for run in runs for each in run.unread]
    if unread:
        lines += ["## Not read", "", *unread, ""]
    return "\n".join(lines)


def _join_cells(texts: Sequence[str]) -> str:
    return "|" + "|".join(f" {_escape(text)} ".replace("  ", " ") for text in texts) + "|"


def _escape(text: str) -> str:
    """Return the text on one line, without characters that end a cell or begin markup."""
    flat = " ".join(str(text).split())
    for char in "\\`*_[]<>|#":
        flat = flat.replace(char, "\\" + char)
    return flat
