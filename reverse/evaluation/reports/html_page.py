"""The report as one HTML page that needs nothing else: no script, no request, pictures inlined.

    Path("report.html").write_text(render_page("Evaluation", runs), encoding="utf-8")

Everything that comes from a file is escaped; plots and pictures stand in `img` as base64, where an SVG cannot
run code. A phrase's colour is its p, from green (0) over yellow to red (1), on a square-root scale, because
most differences that matter lie below 0.1.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from reverse.data.pictures.opening import open_image, resolve_image
from reverse.evaluation.reports.report_tables import Cell, ReportTable, make_tables
from reverse.evaluation.reports.run_folder import RunFolder
from reverse.files.cell_values import LONGEST_ID, read_number, shorten

__all__ = ["render_page", "render_phrases"]

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1f2328}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #d8dee4;text-align:right}
th:first-child,td:first-child{text-align:left}
.scroll{overflow-x:auto}
.plots img{max-width:30rem;margin:.5rem;vertical-align:top}
.example{border:1px solid #d8dee4;border-radius:6px;padding:.6rem 1rem;margin:.6rem 0;overflow:auto}
.example img{float:right;max-width:10rem;max-height:10rem;margin-left:1rem}
.phrase{border-radius:3px;padding:0 .15em}
.unresolved{text-decoration:underline wavy #b3261e}
.question,.rejected,.note{color:#57606a}
del{background:#ffebe9;border-radius:3px;padding:0 .15em;margin-right:.4em}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}.phrase{color:#1f2328}
th,td,.example{border-color:#30363d}.plots img{background:#fff}del{color:#1f2328}}
"""
_KINDS = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
LARGEST_PICTURE = 300_000  # bytes; larger pictures of examples are made smaller
LONGEST_TEXT = 20_000  # characters of an example's text that are shown
MOST = 1_000  # phrases or attempts of an example


def render_page(title: str, runs: Sequence[RunFolder], images: Path | None = None) -> str:
    """Return the whole page. `images` is the folder that holds the examples' pictures."""
    body = [f"<h1>{escape(title)}</h1>", *map(_render_table, make_tables(runs))]
    notes = [
        f"{run.name} {each.name}: {key}: {value}"
        for run in runs
        for each in run.scored
        for key, value in each.table.notes.items()
    ]
    if notes:
        body.append(
            '<details class="note"><summary>How it was scored</summary>' + _render_list(notes) + "</details>"
        )
    for run in runs:
        if run.plots:
            plots = "\n".join(_inline_image(path, path.stem) for path in run.plots)
            body.append(f'<h2>Plots: {escape(run.name)}</h2><div class="plots">\n{plots}\n</div>')
    for run in runs:
        for answers in run.answers:
            if answers.examples:
                body.append(f"<h2>Examples: {escape(f'{run.name} {answers.name}')}</h2>")
                body += [_render_example(row, images) for row in answers.examples]
    unread = [f"{run.name}: {each}" for run in runs for each in run.unread]
    if unread:
        body.append("<h2>Not read</h2>" + _render_list(unread))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _render_table(table: ReportTable) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    lines = "".join(f"<tr>{''.join(map(_render_cell, row))}</tr>" for row in table.rows)
    return f'<h2>{escape(table.title)}</h2>\n<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'


def _render_cell(cell: Cell) -> str:
    title = f' title="{escape(cell.note)}"' if cell.note else ""
    return f"<td{title}>{escape(cell.text)}</td>"


def _render_list(texts: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def render_phrases(text: str, phrases: Sequence[Any]) -> str:
    """Return an answer as HTML with its phrases coloured by p.

    Args:
        phrases: mappings with `start` and `end`, or (text, p, …) in the order of the text. A phrase that is
            not found in the text, or overlaps the one before it, is left out.
    """
    pieces = []
    at = 0
    for start, end, p, status in _locate_phrases(text, phrases[:MOST]):
        if start < at:
            continue
        kind = "phrase unresolved" if status == "unresolved" else "phrase"
        about = "p not read" if p is None else f"p(</UN>) {p:.4g}"
        pieces.append(
            f'{escape(text[at:start])}<span class="{kind}" style="background:{_choose_colour(p)}" '
            f'title="{escape(about)}">{escape(text[start:end])}</span>'
        )
        at = end
    return "".join(pieces) + escape(text[at:])


def _locate_phrases(text: str, phrases: Sequence[Any]) -> list[tuple[int, int, float | None, str]]:
    """Return (start, end, p, status) of every phrase that is found, in the order of the text."""
    found = []
    after = 0
    for phrase in phrases:
        if isinstance(phrase, Mapping):
            start, end, p = phrase.get("start"), phrase.get("end"), phrase.get("p_un")
            if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start <= end <= len(text):
                continue
            status = str(phrase.get("status", ""))
        elif isinstance(phrase, (list, tuple)) and len(phrase) >= 2:
            start = text.find(str(phrase[0]), after)
            if start < 0:
                continue
            end, p, status = start + len(str(phrase[0])), phrase[1], ""
        else:
            continue
        after = end
        found.append((start, end, read_number(p), status))
    return sorted(found)


def _choose_colour(p: float | None) -> str:
    if p is None:
        return "#e6e6e6"
    share = math.sqrt(min(1.0, max(0.0, p))) if p == p else 1.0
    return f"hsl({120 * (1 - share):.0f} 75% 82%)"


def _render_example(row: Mapping[str, Any], images: Path | None) -> str:
    phrases, attempts = (x if isinstance(x, list) else [] for x in (row.get("phrases"), row.get("attempts")))
    text = render_phrases(shorten(str(row["text"]), LONGEST_TEXT), phrases)
    name = shorten(str(row.get("image_id", row.get("image", row.get("id", "")))), LONGEST_ID)
    parts = [_render_picture(name, images)]
    if row.get("prompt"):
        parts.append(f'<div class="question">{escape(shorten(str(row["prompt"]), LONGEST_TEXT))}</div>')
    parts.append(f"<div>{text or '<em>(empty)</em>'}</div>")
    if attempts:
        rejected = "".join(_render_attempt(each) for each in attempts[:MOST] if isinstance(each, Mapping))
        parts.append(f'<div class="rejected">taken back: {rejected}</div>')
    parts.append(f'<div class="note">{escape(name)}</div>')
    return f'<div class="example">{"".join(parts)}</div>'


def _render_attempt(attempt: Mapping[str, Any]) -> str:
    p, temperature = read_number(attempt.get("p_un")), read_number(attempt.get("temperature"))
    about = f"p(</UN>) {p:.4g}" if p is not None else shorten(str(attempt.get("kind", "")))
    about += f", temperature {temperature:g}" if temperature is not None else ""
    return f'<del title="{escape(about)}">{escape(shorten(str(attempt.get("phrase", "")), 500))}</del>'


def _render_picture(name: str, images: Path | None) -> str:
    """Return the example's picture if it lies under `images`; pictures outside it are never shown."""
    if images is None or not name:
        return ""
    for candidate in (name, f"{name}.png", f"{name}.jpg"):
        try:
            path = resolve_image(images, candidate)
            if path.is_file() and path.suffix.lower() in _KINDS and path.suffix != ".svg":
                return _inline_image(path, name)
        except (ValueError, OSError):  # a name that no file can have, or a file that is not a picture
            return ""
    return ""


def _inline_image(path: Path, name: str) -> str:
    kind, content = _KINDS.get(path.suffix.lower(), "image/png"), path.read_bytes()
    if len(content) > LARGEST_PICTURE and path.suffix.lower() != ".svg":
        picture, stream = open_image(path), io.BytesIO()
        picture.thumbnail((1000, 1000))
        picture.save(stream, format="JPEG", quality=85)
        kind, content = "image/jpeg", stream.getvalue()
    inlined = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(name)}" title="{escape(name)}" src="data:{kind};base64,{inlined}">'
