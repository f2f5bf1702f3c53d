"""Show records with their pictures, in the terminal or as one HTML page that needs no other file.

    records = open_records("scenes/test")
    show_records(Console(), records, choose_records(records, n=3), images="scenes/test")
    write_page("look.html", records, choose_records(records, n=50), images="scenes/test")

The shown texts come from others: text is escaped for HTML and loses its control characters for the terminal;
pictures are opened under their root only, checked for size and scaled down.
"""

import base64
import html
import io
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

from reverse.data.pictures.opening import open_image, resolve_image
from reverse.data.records.published_set import Records
from reverse.data.records.schema import pictures_of
from reverse.errors import DataError
from reverse.files.atomic_write import atomic_write
from reverse.files.cell_values import describe
from reverse.tokens.spans import find_problems, parse_tags

PAGE_SIDE = 384  # largest side of a picture on the page, in pixels
TERMINAL_COLUMNS = 40  # of a picture; a character shows two pixels, one above the other
MAX_PAGE = 1000  # records of a page, which then has 20 MB

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
article { display: grid; grid-template-columns: 24rem 1fr; gap: 1.5rem; padding: 1.5rem 0; border-top: 1px
solid #8884; } img { max-width: 100%; } figure { margin: 0; } figcaption, small { color: #777; overflow-wrap:
anywhere; } p { margin: .3rem 0 .8rem; white-space: pre-wrap; overflow-wrap: anywhere; } .asked {
font-weight: 600; } mark { padding: 0 .15em; border-radius: .2em; color: inherit; } .cn { background: #2a92;
box-shadow: inset 0 -2px #2a9; } .un { background: #e542; box-shadow: inset 0 -2px #e54; } .wrong { color:
#c30; } @media (max-width: 50rem) { article { grid-template-columns: 1fr; } } @media (prefers-color-scheme:
dark) { body { background: #181818; color: #ddd; } }
"""


def choose_records(
    records: Records, *, index: int | None = None, name: str | None = None, n: int = 1, seed: int = 0
) -> list[int]:
    """Choose record `index` and the n - 1 after it, those with the id `name`, or n at random; return indices.

    Raises DataError for an index or id that does not exist.
    """
    if n < 1:
        raise DataError(f"n must be at least 1, got {n}")
    if index is not None and name is not None:
        raise DataError("give an index or an id, not both: each of them names the record to show")
    if index is not None:
        if not 0 <= index < len(records):
            raise DataError(f"index must lie in 0 … {len(records) - 1}, the records there are, got {index}")
        return list(range(index, min(index + n, len(records))))
    if name is not None:
        found = records.find(name)
        if not found:
            raise DataError(f"no record has the id {name!r} among {len(records)}")
        return found
    return sorted(random.Random(seed).sample(range(len(records)), min(n, len(records))))


def show_records(
    console: Console, records: Records, indices: Sequence[int], images: str | Path | None
) -> None:
    """Print records: phrases closed by `</CN>` in green, by `</UN>` in red, malformed text as it stands."""
    for index in indices:
        record = records[index]
        title = f"record {index} · id {describe(record.get('id'), 80)}"
        console.rule(Text(_clean(title), style="bold"))
        for name in pictures_of(record):
            picture, problem = _open_small(images, name)
            if picture is not None and console.color_system in ("256", "truecolor"):
                console.print(_draw_blocks(picture))
            console.print(Text(_clean(name), style="dim"), soft_wrap=True)
            if problem:
                console.print(Text(_clean(problem), style="yellow"), soft_wrap=True)
        for turn in record["conversations"]:
            if turn["from"] == "human":
                console.print(Text(f"\n{_clean(turn['value'])}", style="bold"), soft_wrap=True)
                continue
            said = Text()
            coloured = console.color_system is not None  # else the tags themselves say it
            for text, kind in _split_phrases(turn["value"]) if coloured else [(turn["value"], "")]:
                said.append(_clean(text), {"cn": "green", "un": "red underline"}.get(kind, ""))
            console.print(said, soft_wrap=True)
            if about := _describe_answer(turn):
                console.print(Text(_clean(about), style="dim"), soft_wrap=True)
            for wrong in find_problems(turn["value"]):
                console.print(Text(wrong.message, style="yellow"), soft_wrap=True)


def write_page(
    out: str | Path,
    records: Records,
    indices: Sequence[int],
    images: str | Path | None,
    title: str = "records",
) -> None:
    """Write at most 1,000 records as one HTML page that contains their pictures as JPEG."""
    if len(indices) > MAX_PAGE:
        raise DataError(f"a page shows at most {MAX_PAGE} records, got {len(indices)}: ask for fewer")
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):  # it replaces what is there: no set of records may be
        raise DataError(f"a page's name ends in .html, got {out.name!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as stream:
        stream.write(_make_head(title, len(indices)).encode("utf-8"))
        for index in indices:
            stream.write(_make_article(index, records[index], images).encode("utf-8", "replace"))
        stream.write(b"</body></html>\n")


def _make_head(title: str, count: int) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        # Nothing in a record may load or run anything, should one ever get through.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_escape(title)}</h1><p>{count} records. "
        '<mark class="cn">confident</mark> <mark class="un">unconfident</mark></p>\n'
    )


def _make_article(index: int, record: dict[str, Any], images: str | Path | None) -> str:
    lines = [f'<article id="r{index}"><figure>']
    for name in pictures_of(record):
        picture, problem = _open_small(images, name)
        if picture is not None:
            lines.append(f'<img alt="" src="data:image/jpeg;base64,{_encode_jpeg(picture)}">')
        lines.append(f"<figcaption>{_escape(name)}</figcaption>")
        if problem:
            lines.append(f'<p class="wrong">{_escape(problem)}</p>')
    lines.append(
        f"</figure><div><small>record {index} · id {_escape(describe(record.get('id'), 80))}</small>"
    )
    for turn in record["conversations"]:
        if turn["from"] == "human":
            lines.append(f'<p class="asked">{_escape(turn["value"])}</p>')
            continue
        marked = "".join(
            f'<mark class="{kind}">{_escape(text)}</mark>' if kind else _escape(text)
            for text, kind in _split_phrases(turn["value"])
        )
        about = _describe_answer(turn)
        lines.append(f"<p>{marked}" + (f"<br><small>{_escape(about)}</small>" if about else "") + "</p>")
        lines += [f'<p class="wrong">{_escape(wrong.message)}</p>' for wrong in find_problems(turn["value"])]
    return "\n".join([*lines, "</div></article>\n"])


def _split_phrases(tagged: str) -> Iterator[tuple[str, str]]:
    """Yield the text in pieces, each with its phrase's kind ("cn", "un") or ""; malformed text as one."""
    if find_problems(tagged):
        yield tagged, ""
        return
    parsed = parse_tags(tagged)
    at = 0
    for phrase in parsed.phrases:
        yield parsed.text[at : phrase.start], ""
        yield phrase.text, "cn" if phrase.confident else "un"
        at = phrase.end
    yield parsed.text[at:], ""


def _describe_answer(turn: dict[str, Any]) -> str:
    kind, hint = turn.get("A_type"), turn.get("hint")
    return " · ".join(part for part in (kind, f"hint: {hint}" if hint else None) if part)


def _open_small(root: str | Path | None, image: str) -> tuple[Image.Image | None, str]:
    """Open a picture and scale it down; return it, or None and what is wrong with it."""
    if root is None:
        return None, "pictures are not shown: say with --images what their paths are relative to"
    try:
        picture = open_image(resolve_image(root, image))
    except (ValueError, OSError) as error:
        return None, str(error)
    picture.thumbnail((PAGE_SIDE, PAGE_SIDE))
    return picture, ""


def _encode_jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw_blocks(picture: Image.Image) -> Text:
    """Draw a picture with characters: the upper half is one pixel, the background the one below it."""
    height = max(2, round(TERMINAL_COLUMNS * picture.height / picture.width / 2) * 2)
    small = picture.resize((TERMINAL_COLUMNS, min(height, 2 * TERMINAL_COLUMNS)))
    text = Text()
    for y in range(0, small.height - 1, 2):
        for x in range(small.width):
            upper, lower = small.getpixel((x, y)), small.getpixel((x, y + 1))
            text.append("▀", f"rgb({_rgb(upper)}) on rgb({_rgb(lower)})")
        text.append("\n")
    return text


def _rgb(pixel: Any) -> str:
    return ",".join(str(value) for value in pixel)


def _clean(text: str) -> str:
    return _CONTROL.sub("\ufffd", text)


def _escape(text: str) -> str:
    return html.escape(_clean(text), quote=True)
