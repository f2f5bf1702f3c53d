"""`reverse data import`, `export`, `check`, `subsample` and `view`: commands for sets of records."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reverse.commands.draft_commands import export_drafts, import_drafts
from reverse.commands.option_classes import make_command
from reverse.commands.shared_options import Seed
from reverse.errors import RequestError
from reverse.progress import show_progress

SET = "Imported set, folder of scenes, JSON list or JSON lines."
FORMAT = "Published format of the file: r3v, llava-cot, srpo-sft, tsst-beam, … (docs/drafts.md lists them)."
IMAGES = "Folder that the pictures' paths are relative to. Not needed for a folder of scenes."


def register(data: typer.Typer) -> None:
    """Add the commands to the group `reverse data`."""
    data.command("import")(import_)
    data.command("export")(export)
    data.command("check")(check)
    data.command("subsample")(subsample)
    data.command("view")(make_command(view, ViewOptions))


def import_(
    file: Annotated[Path, typer.Argument(help="JSON list or JSON lines of records, of any size.")],
    out: Annotated[
        Path, typer.Argument(help="Folder to write; a stopped import continues. With --as, a draft file.")
    ],
    skip_corrupt: Annotated[
        bool,
        typer.Option(
            "--skip-corrupt", help="Leave out broken records and values that are not records, and list them."
        ),
    ] = False,
    format_name: Annotated[str | None, typer.Option("--as", help=FORMAT)] = None,
    root: Annotated[
        str | None, typer.Option(help="With --as: the folder that absolute picture paths begin with.")
    ] = None,
) -> None:
    """Import a file of records into Arrow files, or with --as a published file into a draft file."""
    if format_name is not None:
        import_drafts(file, out, format_name, root=root, skip_corrupt=skip_corrupt)
        return
    if root is not None:
        raise RequestError("--root belongs to --as: name the format of the file, such as --as tsst-beam")
    from reverse.data.records.importer import import_records

    with show_progress("bytes read") as progress:
        manifest = import_records(file, out, skip_corrupt=skip_corrupt, progress=progress)
    typer.echo(f"{out}: {manifest['records']:,} records, {manifest['answers']:,} answers")
    if manifest["left_out"]:
        console = Console(stderr=True)
        console.print(
            Text(f"left out: {manifest['left_out']:,}, listed in {out / 'manifest.json'}", "yellow")
        )
        for broken in manifest["corrupt"][:10]:
            console.print(Text(f"  {broken['where']}: {broken['reason']}"), soft_wrap=True)


def export(
    drafts: Annotated[Path, typer.Argument(help="Draft file, as `reverse data import --as` writes it.")],
    out: Annotated[Path, typer.Argument(help="File to write: .jsonl for JSON lines, otherwise one value.")],
    format_name: Annotated[str, typer.Option("--as", help=FORMAT)],
    link: Annotated[
        bool,
        typer.Option(
            "--link", help="Before the export, link right and wrong drafts of records that have no links."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="With --link: random seed of the order of candidates.")] = 0,
) -> None:
    """Write a draft file as a published file."""
    export_drafts(drafts, out, format_name, seed=seed if link else None)


def check(
    file: Annotated[Path, typer.Argument(help=SET)],
    images: Annotated[Path | None, typer.Option(help=IMAGES)] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Checkpoint folder, hub id or bundled name, to count tokens.")
    ] = None,
    token_sample: Annotated[int, typer.Option(help="Number of records whose tokens are counted.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Random seed of that sample.")] = 0,
    decode: Annotated[
        bool, typer.Option(help="Decode every picture as training does; otherwise check only that it exists.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report what a set holds and what is wrong with it; the exit code is 1 if something is wrong."""
    from reverse.data.records.published_set import records_path
    from reverse.data.records.set_check import check_set

    records_path(file)  # its error comes before the tokenizer is loaded
    reader = None
    if tokenizer is not None:
        from reverse.models.checkpoints.tokenizer_loading import load_tokenizer

        reader = load_tokenizer(tokenizer)
    with show_progress("checked") as progress:
        report = check_set(
            file, images=images, tokenizer=reader, token_sample=token_sample, seed=seed, decode=decode,
            progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(Console(), report)
    if not report.ok:
        raise typer.Exit(1)


def subsample(
    file: Annotated[Path, typer.Argument(help=SET)],
    out: Annotated[Path, typer.Argument(help="JSON file to write.")],
    n: Annotated[int, typer.Option("--n", help="Number of records.")] = 100_000,
    seed: Seed = 0,
    plain: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="PLAIN PLAINOUT",
            help="The set without tags, and the file to write its records with the same ids to.",
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Skip ids that the plain set does not have.")
    ] = False,
) -> None:
    """Draw records at random; with --plain, draw the same ids from both sets, in the same order."""
    from reverse.data.records.subsets import subsample as draw

    source, target = plain or (None, None)
    with show_progress("read", transient=True) as progress:
        manifest = draw(
            file, out, n, seed=seed, plain=source, plain_out=target,
            allow_missing=allow_missing, progress=progress,
        )  # fmt: skip
    typer.echo(f"{out}: {n:,} records, seed {seed}")
    if plain is not None:
        negatives = (
            f" ({manifest['neg_ids']:,} of them negatives, X-neg for X)" if manifest["neg_ids"] else ""
        )
        typer.echo(
            f"{target}: the same ids{negatives}; {manifest['same_questions']:,} ask the same, "
            f"{manifest['other_questions']:,} are matched by id alone; ids that one set lacks: "
            f"{manifest['ids_only_tagged']:,} the plain, {manifest['ids_only_plain']:,} the tagged"
        )


@dataclass(frozen=True)
class ViewOptions:
    """Options of `reverse data view`."""

    file: Annotated[Path, typer.Argument(help=SET + " With --as, it is a file of drafts.")]
    index: Annotated[int | None, typer.Option(help="Number of the first record to show, from 0.")] = None
    name: Annotated[str | None, typer.Option("--id", help="Id of the records to show.")] = None
    n: Annotated[int, typer.Option("--n", help="Number of records.")] = 3
    seed: Annotated[int, typer.Option(help="Random seed, if neither --index nor --id is given.")] = 0
    images: Annotated[Path | None, typer.Option(help=IMAGES)] = None
    html: Annotated[
        Path | None, typer.Option(help="Write one HTML page with the pictures in it instead.")
    ] = None
    kind: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="Make training records of drafts: cot, tagged_steps, judge, refine, self_correct, reflect, "
            "reflect_judge or select; or rows for RL: dpo, grpo or value. Needs --out.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(help="With --as: JSON lines to write.")] = None
    role: Annotated[
        list[str] | None, typer.Option(help="With --as: take drafts of this role only. Repeatable.")
    ] = None
    verified: Annotated[
        bool, typer.Option("--verified", help="With --as cot: use only drafts whose steps are all right.")
    ] = False
    tagged: Annotated[
        bool, typer.Option("--tagged/--untagged", help="With --as: write the three tokens around phrases.")
    ] = True
    right_share: Annotated[
        float, typer.Option(help="With --as: share of right first answers that become pairs.")
    ] = 0.3
    per_question: Annotated[
        int | None,
        typer.Option(help="With --as: largest number of rows from one question. [default: all, select 1]"),
    ] = None
    instruction: Annotated[
        str | None, typer.Option(help="With --as: the mode's instruction. [default: as in the mode]")
    ] = None


def view(options: ViewOptions) -> None:
    """Show records with their pictures; phrases are coloured.

    With --as, make training records from drafts.
    """
    if options.kind is not None:
        _write_view(options)
        return
    if options.out is not None:
        raise RequestError(f"--out {options.out} needs --as, which names what to make from the drafts")
    from reverse.data.records.published_set import open_records, records_path
    from reverse.data.records.viewer import choose_records, show_records, write_page

    file, images = options.file, options.images
    if images is None and records_path(file) != file:
        images = file
    if images is not None and not images.is_dir():
        raise RequestError(
            f"--images {images} is not a folder: name what the records' pictures are relative to"
        )
    with show_progress("read", transient=True) as progress:
        records = open_records(file, progress)
    indices = choose_records(records, index=options.index, name=options.name, n=options.n, seed=options.seed)
    if options.html is None:
        show_records(Console(), records, indices, images)
        return
    write_page(options.html, records, indices, images, title=file.name)
    typer.echo(f"{options.html}: {len(indices)} records")


def _write_view(options: ViewOptions) -> None:
    """Make training records from drafts, and print what was left out."""
    from reverse.training.views.view_files import make_mode, write_view
    from reverse.training.views.view_rows import ViewSettings

    kind = str(options.kind)
    if options.out is None:
        raise RequestError("--as needs --out: name the file to write the training records to")
    settings = ViewSettings(
        seed=options.seed,
        roles=tuple(options.role or ()),
        verified=options.verified,
        tagged=options.tagged,
        right_share=options.right_share,
        per_question=options.per_question,
        mode=make_mode(kind, options.instruction),
    )
    with show_progress("records", transient=True) as progress:
        made = write_view(options.file, options.out, kind, settings, progress)
    counts = ", ".join(f"{count:,} {name}" for name, count in made["made"].items())
    typer.echo(f"{options.out}: {made['rows']:,} rows of {made['drafts']['records']:,} records ({counts})")
    for reason, count in made["left_out"].items():
        typer.echo(f"  left out: {count:,}, {reason}")


def _print_report(console: Console, report: Any) -> None:
    console.print(_make_table("by source", "source", report.sources, report.counts))
    console.print(_make_table("by answer type", "A_type", report.types, report.counts))
    lines = [("records", f"{report.counts['records']:,}")]
    if report.counts.get("left_out"):
        lines.append(("left out", f"{report.counts['left_out']:,} when the set was imported"))
    if report.tokens is not None:
        spread = ", ".join(f"{value:,.0f} ({p} %)" for p, value in report.tokens["percentiles"].items())
        lines.append(("tokens", f"{spread} of {report.tokens['records']:,} records, without the picture"))
        if not report.tokens["tags_are_tokens"]:
            lines.append(("", "the tokenizer lacks the three tokens: tags are counted in pieces"))
    if report.pictures is None:
        lines.append(("pictures", f"{report.counts['pictures']:,}, not looked for: --images says where"))
    else:
        lines.append(("pictures", f"{report.pictures['different']:,} under {report.pictures['root']}"))
    for label, text in lines:
        console.print(Text.assemble((f"{label:<10}", "bold"), text), soft_wrap=True)
    for style, text in _describe_problems(report):
        console.print(Text(text, style), soft_wrap=not style)
    verdict = ("nothing is wrong", "green") if report.ok else ("something is wrong", "red")
    console.print(Text(*verdict))


def _describe_problems(report: Any) -> Iterator[tuple[str, str]]:
    """Yield lines with their styles: a headline for each kind of problem, and its examples."""
    from reverse.data.records.set_check import UNUSABLE

    if report.counts["broken"]:
        yield "red", f"broken records: {report.counts['broken']:,}"
        for broken in report.broken:
            yield "", f"  {broken['where']}: {broken['reason']}"
    for among, style in ((report.malformed, "red"), (report.notes, "yellow")):
        for kind, seen in sorted(among.items()):
            yield style, f"{kind.replace('_', ' ')}: {seen['count']:,}"
            for each in seen["examples"]:
                where = f"record {each['index']}, id {each['id']!r}, turn {each['turn']}"
                yield "", f"  {where}: {each['text']!r}"
    pictures = report.pictures or {}
    for kind in UNUSABLE:
        if pictures.get(kind):
            yield "red", f"{kind} pictures: {pictures[kind]:,}, in {pictures[f'{kind}_records']:,} records"
            for each in pictures[f"{kind}_examples"]:
                reason = f": {each['reason']}" if "reason" in each else ""
                yield "", f"  record {each['index']}: {each['image']!r}{reason}"


def _make_table(title: str, first: str, rows: dict[str, dict[str, int]], totals: dict[str, int]) -> Table:
    from reverse.data.records.set_check import COLUMNS

    headings = {"confident": "</CN>", "unconfident": "</UN>"}
    columns = (["records"] if first == "source" else []) + list(COLUMNS)
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(Text(headings.get(column, column)), justify="right")
    for name, row in list(rows.items())[:30]:
        table.add_row(Text(repr(name)[1:-1]), *(f"{row[column]:,}" for column in columns))
    if len(rows) > 30:
        table.add_row(Text(f"… {len(rows) - 30} more, see --json"))
    table.add_section()
    table.add_row("all", *(f"{totals[column]:,}" for column in columns))
    return table
