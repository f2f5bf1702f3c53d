"""The report as one HTML page that needs nothing else: no script, no request, pictures inlined.

    Path("report.html").write_text(page("Evaluation", runs), encoding="utf-8")

Whatever came out of a file is escaped; plots and pictures stand in `img` as base64, where an SVG cannot run
anything. A phrase's colour is its p, from green (0) over yellow to red (1), on a root scale, as what matters
happens below 0.1.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from reverse.data.pictures.opening import resolve_image
from reverse.evaluation.reports.reporting import SEED_COLUMNS, Run, costs, headed, seed_rows, shown, tables_of
from reverse.files.cell_values import LONGEST_ID, read_number, shorten

__all__ = ["coloured", "page"]

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
PICTURE = 300_000  # bytes; larger ones of examples are made smaller
LONGEST = 20_000  # characters of a text of an example that are shown
MOST = 1_000  # phrases or attempts of an example


def page(title: str, runs: Sequence[Run], images: Path | None = None) -> str:
    """The whole page."""
    body = [f"<h1>{escape(title)}</h1>"]
    for benchmark, metrics, rows in tables_of(runs):
        head = "".join(f"<th>{escape(headed(metric))}</th>" for metric in metrics)
        lines = []
        for name, figures in rows:
            cells = "".join(
                f"<td{_note(figures.get(m.name))}>{escape(shown(m, figures.get(m.name)))}</td>"
                for m in metrics
            )
            lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
        body.append(f"<h2>{escape(benchmark)}</h2>")
        body.append(_table(f"<tr><th></th>{head}</tr>", lines))
    body += _notes(runs)
    for run in runs:
        for name, rows_of_seeds in seed_rows(run):
            body.append(f"<h2>Decoding seeds: {escape(f'{run.name} {name}')}</h2>")
            head = "".join(f"<th>{escape(column)}</th>" for column in SEED_COLUMNS)
            lines = ["".join(f"<td>{escape(cell)}</td>" for cell in each) for each in rows_of_seeds]
            body.append(_table(f"<tr>{head}</tr>", [f"<tr>{line}</tr>" for line in lines]))
    counted = [(run, answers) for run in runs for answers in run.answers]
    if counted:
        names = ("", "answers", "tokens an answer", "seconds an answer", "empty %", "unresolved %")
        body.append("<h2>Answers and what they cost</h2>")
        lines = []
        for run, answers in counted:
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in costs(answers))
            lines.append(f"<tr><td>{escape(f'{run.name} {answers.name}')}</td>{cells}</tr>")
        body.append(_table("<tr>" + "".join(f"<th>{escape(n)}</th>" for n in names) + "</tr>", lines))
    for run in runs:
        if run.plots:
            body.append(f'<h2>Plots: {escape(run.name)}</h2><div class="plots">')
            body += [_image(path, path.stem) for path in run.plots]
            body.append("</div>")
    for run, answers in counted:
        if answers.examples:
            body.append(f"<h2>Examples: {escape(f'{run.name} {answers.name}')}</h2>")
            body += [_example(row, images) for row in answers.examples]
    unread = [f"<li>{escape(f'{run.name}: {each}')}</li>" for run in runs for each in run.unread]
    if unread:
        body += ["<h2>Not read</h2><ul>", *unread, "</ul>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def coloured(text: str, phrases: Sequence[Any]) -> str:
    """An answer as HTML, its phrases coloured by p. Phrases are mappings with start and end, or (text, p, …)
    in the order in which they stand; one that is not found is left out."""
    pieces = []
    at = 0
    for start, end, p, status in _places(text, phrases[:MOST]):
        if start < at:
            continue
        pieces.append(escape(text[at:start]))
        kind = "phrase unresolved" if status == "unresolved" else "phrase"
        about = "p not read" if p is None else f"p(</UN>) {p:.4g}"
        colour = "#e6e6e6" if p is None else _colour(p)
        pieces.append(
            f'<span class="{kind}" style="background:{colour}" title="{escape(about)}">'
            f"{escape(text[start:end])}</span>"
        )
        at = end
    return "".join(pieces) + escape(text[at:])


def _places(text: str, phrases: Sequence[Any]) -> list[tuple[int, int, float | None, str]]:
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


def _colour(p: float) -> str:
    share = math.sqrt(min(1.0, max(0.0, p))) if p == p else 1.0
    return f"hsl({120 * (1 - share):.0f} 75% 82%)"


def _example(row: Mapping[str, Any], images: Path | None) -> str:
    phrases = row.get("phrases")
    text = coloured(shorten(str(row["text"]), LONGEST), phrases if isinstance(phrases, list) else ())
    name = shorten(str(row.get("image_id", row.get("image", row.get("id", "")))), LONGEST_ID)
    parts = [_picture(name, images)]
    if row.get("prompt"):
        parts.append(f'<div class="question">{escape(shorten(str(row["prompt"]), LONGEST))}</div>')
    parts.append(f"<div>{text or '<em>(empty)</em>'}</div>")
    attempts = row.get("attempts")
    if isinstance(attempts, list) and attempts:
        gone = "".join(
            f'<del title="{escape(_about(each))}">{escape(shorten(str(each.get("phrase", "")), 500))}</del>'
            for each in attempts[:MOST]
            if isinstance(each, Mapping)
        )
        parts.append(f'<div class="rejected">taken back: {gone}</div>')
    parts.append(f'<div class="note">{escape(name)}</div>')
    return f'<div class="example">{"".join(parts)}</div>'


def _about(attempt: Mapping[str, Any]) -> str:
    p = read_number(attempt.get("p_un"))
    said = f"p(</UN>) {p:.4g}" if p is not None else shorten(str(attempt.get("kind", "")))
    warmth = read_number(attempt.get("temperature"))
    return said + (f", temperature {warmth:g}" if warmth is not None else "")


def _picture(name: str, images: Path | None) -> str:
    """The example's picture, where it lies under `images`; never one outside it."""
    if images is None or not name:
        return ""
    for candidate in (name, f"{name}.png", f"{name}.jpg"):
        try:
            path = resolve_image(images, candidate)
            if path.is_file() and path.suffix.lower() in _KINDS and path.suffix != ".svg":
                return _image(path, name)
        except (ValueError, OSError):  # a name that no file can have, or a file that is no picture
            return ""
    return ""


def _image(path: Path, name: str) -> str:
    kind, data = _KINDS.get(path.suffix.lower(), "image/png"), path.read_bytes()
    if len(data) > PICTURE and path.suffix.lower() != ".svg":
        kind, data = "image/jpeg", _smaller(path)
    inlined = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(name)}" title="{escape(name)}" src="data:{kind};base64,{inlined}">'


def _smaller(path: Path) -> bytes:
    import io

    from reverse.data.pictures.opening import open_image

    picture = open_image(path)
    picture.thumbnail((1000, 1000))
    held = io.BytesIO()
    picture.save(held, format="JPEG", quality=85)
    return held.getvalue()


def _note(found: Any) -> str:
    return f' title="{escape(found.note)}"' if found is not None and found.note else ""


def _notes(runs: Sequence[Run]) -> list[str]:
    """What the scorers said about versions, fallbacks and failures."""
    said = [
        f"<li>{escape(f'{run.name} {stem}: {key}: {value}')}</li>"
        for run in runs
        for stem, table, _, _ in run.scored
        for key, value in table.notes.items()
    ]
    return (
        ['<details class="note"><summary>How it was scored</summary><ul>', *said, "</ul></details>"]
        if said
        else []
    )


def _table(head: str, lines: Sequence[str]) -> str:
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>'
