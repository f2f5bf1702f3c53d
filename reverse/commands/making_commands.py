"""`reverse data tag` and `reverse data negatives`: plain instruct data in, training data out.

    reverse data tag llava.json tagged.json
    reverse data negatives tagged.json train.json

Both may be stopped at any moment and started again: see `reverse.files.resumable_parts`.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from reverse.errors import RequestError
from reverse.progress import ProgressCallback, show_progress

FORMAT = 2  # of what is written: a part of another is not gone on with


def register(data: typer.Typer) -> None:
    """Add the commands to the group `reverse data`."""
    data.command("tag")(tag)
    data.command("negatives")(negatives)


def tag(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Instruct records, a JSON list or JSON lines.")
    ],
    out: Annotated[Path, typer.Argument(help="File to write: .json or .jsonl; a stopped run goes on.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Records worked on at a time.")] = 128,
    seed: Annotated[int, typer.Option(help="Kept in the manifest; tagging draws nothing.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many records.")] = None,
) -> None:
    """Mark the key phrases of plain instruct data: <SPAN>a dog</CN>."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process each; more threads only fight
    from reverse.data.tagging.tagger import SPACY_MODEL, tag_records

    with _pass(source, out, {"command": "tag", "model": SPACY_MODEL, "seed": seed, "limit": limit}) as (
        part,
        records,
    ):
        if part is not None:
            with show_progress("records tagged") as progress:
                for record, counts in tag_records(records, workers=workers, batch=batch):
                    part.write([record], counts)
                    progress(part.done)
            part.finish()
    counts = _manifest(out)["counts"]
    typer.echo(
        f"{out}: {counts.get('answers', 0)} answers with {counts.get('phrases', 0)} phrases; "
        f"{counts.get('without_phrase', 0)} without, {counts.get('already_tagged', 0)} tagged before"
    )


def negatives(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Tagged records, as `data tag` writes them.")],
    out: Annotated[Path, typer.Argument(help="File to write: .json or .jsonl; a stopped run goes on.")],
    by: Annotated[
        str, typer.Option(help="lexicon: offline; llm: by the model at REVERSE_LLM_BASE_URL.")
    ] = "lexicon",
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many records.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    price_in: Annotated[float, typer.Option(min=0, help="Money a million tokens read.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="Money a million tokens written.")] = 0.0,
    cache: Annotated[Path | None, typer.Option(help="Replies of the model; else OUT.replies.jsonl.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of one request.")] = 120.0,
) -> None:
    """Make one negative for every right answer: one phrase wrong, closed by </UN>."""
    if by not in ("lexicon", "llm"):
        raise RequestError(f"--by must be lexicon or llm, got {by!r}")
    plan: dict[str, Any] = {"command": "negatives", "by": by, "seed": seed, "limit": limit}
    if by == "lexicon":
        _by_lexicon(source, out, plan)
    else:
        from reverse.data.negatives.negative_prompt import VERSION
        from reverse.endpoints.client import Endpoint

        endpoint = Endpoint.from_environment(timeout=timeout)
        plan |= {"model": endpoint.model, "address": endpoint.shown_url, "prompt": VERSION}
        prices = (price_in, price_out)
        replies = cache or out.with_name(out.name + ".replies.jsonl")
        _by_model(source, out, plan, endpoint, concurrency, prices, replies)
    counts = _manifest(out)["counts"]
    made = counts.get("negative_answers", 0)
    without = sum(many for key, many in counts.items() if key.startswith("without_negative."))
    typer.echo(
        f"{out}: {counts.get('positive_answers', 0)} right answers, {made} wrong ones; {without} got none"
    )
    if without:
        typer.echo(f"{out}.failures.jsonl: which and why")
    before = counts.get("without_negative.negative_already", 0)
    if before:
        typer.echo(
            f"{before} answers of {source} have their negatives already: they are passed on as they are"
        )
    if without and not counts.get("hints"):
        if counts.get("without_negative.no_phrase") == without:
            typer.echo(f"no answer of {source} has a marked phrase: `reverse data tag` marks them", err=True)
            raise typer.Exit(1)
        if before:
            typer.echo(f"no negative was made: {source} holds them already, and may be trained on", err=True)
            raise typer.Exit(1)
    if by == "llm":
        typer.echo(_cost(counts, (price_in, price_out)))


def _by_lexicon(source: Path, out: Path, plan: dict[str, Any]) -> None:
    from reverse.data.negatives import make_lexicon_negatives

    with _pass(source, out, plan) as (part, records):
        if part is None:
            return
        with show_progress("records") as progress:
            pairs = _pairs(source, plan["limit"])
            for made, counts, failures in make_lexicon_negatives(records, plan["seed"], pairs):
                part.write(made, counts, _placed(failures, part.done))
                progress(part.done)
        part.finish()


def _by_model(
    source: Path, out: Path, plan: dict[str, Any], endpoint: Any, concurrency: int, prices: Any, replies: Path
) -> None:
    from reverse.data.negatives.llm_negatives import request_negatives
    from reverse.endpoints.client import ChatClient
    from reverse.endpoints.reply_cache import ReplyCache

    async def run(part: Any, records: Iterator[dict[str, Any]], progress: ProgressCallback) -> None:
        cache = ReplyCache(replies)
        client = ChatClient(endpoint, cache, concurrency)
        total = part.counts()
        try:
            async for made, counts, failures in request_negatives(
                records, client, plan["seed"], concurrency, pairs=_pairs(source, plan["limit"])
            ):
                part.write(made, counts, _placed(failures, part.done))
                total.update(counts)
                progress(part.done, None, _cost(total, prices))
        finally:
            await client.aclose()
            cache.close()

    with _pass(source, out, plan) as (part, records):
        if part is None:
            return
        with show_progress("records") as progress:
            asyncio.run(run(part, records, progress))
        part.finish()


def _pairs(source: Path, limit: int | None) -> frozenset[int]:
    """What tells the records that are paired already; the set is read through once for it."""
    from reverse.data.negatives import find_pairs
    from reverse.data.records.published_set import scan_records
    from reverse.files.json_scanning import Item

    # What is broken is reported when its turn comes: what stands before it is made and kept.
    records = (item.value for item in scan_records(source) if isinstance(item, Item))
    return find_pairs(islice(records, limit))


def _placed(failures: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Failures with the number of their record in the input, where no id says which it is."""
    return [line if line["id"] is not None else line | {"record": number} for line in failures]


@contextmanager
def _pass(source: Path, out: Path, plan: dict[str, Any]) -> Iterator[tuple[Any, Iterator[dict[str, Any]]]]:
    """The part to write to (None: all is done) and the records that are left."""
    from reverse.data.records.published_set import read_records, records_path
    from reverse.files.atomic_write import sha256
    from reverse.files.resumable_parts import PartFile

    path = records_path(source)  # a file, or an imported set, whose manifest names the hash of its source
    path = path / "manifest.json" if path.is_dir() else path
    if source.resolve() == out.resolve():
        raise RequestError(f"{out} is the input: name another file to write")
    plan = {"format": FORMAT, **plan, "input": source.name, "input_sha256": sha256(path)}
    with PartFile(out, plan) as part:
        if part.manifest is not None:
            yield None, iter(())
            return
        if part.done:
            Console(stderr=True).print(f"going on after {part.done} records", style="dim")
        try:
            yield part, islice(read_records(source), part.done, plan["limit"])
        except KeyboardInterrupt:
            Console(stderr=True).print(f"stopped after {part.done} records; the same command goes on")
            raise
        except ImportError as error:  # an extra that is not installed: one line, as for other refusals
            raise RequestError(str(error)) from error


def _manifest(out: Path) -> dict[str, Any]:
    import json

    return json.loads(out.with_name(out.name + ".manifest.json").read_text(encoding="utf-8"))


def _cost(counts: Any, prices: tuple[float, float]) -> str:
    spent = counts.get("tokens_in", 0), counts.get("tokens_out", 0)
    line = f"{counts.get('replies', 0)} replies, {spent[0]} tokens in, {spent[1]} out"
    if any(prices):
        line += f", {(spent[0] * prices[0] + spent[1] * prices[1]) / 1e6:.2f} money"
    return line
