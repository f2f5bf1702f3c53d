"""`reverse data tag`, `negatives` and `reasoning`: make training data.

    reverse data tag llava.json tagged.json
    reverse data negatives tagged.json train.json
    reverse data reasoning out/reasoning

All may be stopped at any moment and started again (`reverse.files.resumable_parts`, `block_writing`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from reverse.commands.option_classes import make_command
from reverse.commands.shared_options import Limit, PriceIn, PriceOut, Seed, Timeout
from reverse.errors import RequestError
from reverse.progress import show_progress

if TYPE_CHECKING:
    from reverse.endpoints.client import Endpoint
    from reverse.files.resumable_parts import PartFile

FORMAT = 2  # of the output; a part of another format is not continued
OUT_HELP = "File to write, .json or .jsonl. A stopped run continues."


def register(data: typer.Typer) -> None:
    """Add the commands to the group `reverse data`."""
    data.command("tag")(tag)
    data.command("negatives")(make_command(negatives, NegativesOptions))
    data.command("reasoning")(reasoning)


def reasoning(
    out: Annotated[Path, typer.Argument(help="Folder to write. A stopped run is continued.")],
    split: Annotated[str, typer.Option(help="train, val, test or shift.")] = "train",
    count: Annotated[int, typer.Option(help="Number of pictures.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the pictures.")] = 0,
    workers: Annotated[int, typer.Option(help="Number of processes.")] = 1,
    questions: Annotated[int, typer.Option(help="Number of questions about each picture, 1 to 8.")] = 2,
    tables: Annotated[float, typer.Option(help="Share of the pictures that are tables.")] = 0.2,
) -> None:
    """Write pictures for counting and calculating, with questions and rationales whose steps are checked."""
    from reverse.data.scenes.reasoning import write_reasoning

    with show_progress("pictures", count) as progress:
        manifest = write_reasoning(
            out, split, count, seed, workers, progress, questions=questions, tables=tables
        )
    typer.echo(f"{out}: {manifest['count']} pictures of {manifest['split']} with their questions")


def tag(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Instruct records: a JSON list or JSON lines.")
    ],
    out: Annotated[Path, typer.Argument(help=OUT_HELP)],
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Number of records tagged in one batch.")] = 128,
    seed: Annotated[
        int, typer.Option(help="Seed to record in the manifest. Tagging itself is deterministic.")
    ] = 0,
    limit: Limit = None,
) -> None:
    """Mark the key phrases of plain instruct data: <SPAN>a dog</CN>."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes use all cores; more threads slow them down
    from reverse.data.tagging.tagger import SPACY_MODEL, tag_records

    plan = {"command": "tag", "model": SPACY_MODEL, "seed": seed, "limit": limit}
    with _open_pass(source, out, plan) as (part, records):
        if part.manifest is None:
            with show_progress("records tagged") as progress:
                for record, counts in tag_records(records, workers=workers, batch=batch):
                    part.write([record], counts)
                    progress(part.done)
        counts = part.finish()["counts"]
    typer.echo(
        f"{out}: {counts.get('answers', 0)} answers with {counts.get('phrases', 0)} phrases; "
        f"{counts.get('without_phrase', 0)} without, {counts.get('already_tagged', 0)} tagged before"
    )


@dataclass(frozen=True)
class NegativesOptions:
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Tagged records, as `reverse data tag` writes them.")
    ]
    out: Annotated[Path, typer.Argument(help=OUT_HELP)]
    by: Annotated[
        str, typer.Option(help="lexicon works offline; llm asks the model at REVERSE_LLM_BASE_URL.")
    ] = "lexicon"
    seed: Seed = 0
    limit: Limit = None
    concurrency: Annotated[int, typer.Option(min=1, help="Largest number of requests at a time.")] = 16
    price_in: PriceIn = 0.0
    price_out: PriceOut = 0.0
    cache: Annotated[
        Path | None, typer.Option(help="File for the model's replies. Default: OUT.replies.jsonl.")
    ] = None
    timeout: Timeout = 120.0


def negatives(options: NegativesOptions) -> None:
    """Make one negative for each right answer: one phrase is wrong and closed by </UN>."""
    source, out = options.source, options.out
    if options.by not in ("lexicon", "llm"):
        raise RequestError(f"--by must be lexicon or llm, got {options.by!r}")
    plan = {"command": "negatives", "by": options.by, "seed": options.seed, "limit": options.limit}
    endpoint = None
    if options.by == "llm":
        from reverse.data.negatives.negative_prompt import VERSION
        from reverse.endpoints.client import Endpoint

        endpoint = Endpoint.from_environment(timeout=options.timeout)
        plan |= {"model": endpoint.model, "address": endpoint.shown_url, "prompt": VERSION}
    with _open_pass(source, out, plan) as (part, records):
        if part.manifest is None:
            pairs = _find_pairs(source, options.limit)
            if endpoint is None:
                _make_by_lexicon(part, records, pairs, options.seed)
            else:
                asyncio.run(_make_by_model(part, records, pairs, endpoint, options))
        counts = part.finish()["counts"]
    made = counts.get("negative_answers", 0)
    without = sum(many for key, many in counts.items() if key.startswith("without_negative."))
    typer.echo(
        f"{out}: {counts.get('positive_answers', 0)} right answers, {made} wrong ones; {without} got none"
    )
    if without:
        typer.echo(f"{out}.failures.jsonl lists the answers without a negative and the reasons")
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
    if options.by == "llm":
        typer.echo(_describe_cost(counts, options))


def _make_by_lexicon(
    part: PartFile, records: Iterator[dict[str, Any]], pairs: frozenset[int], seed: int
) -> None:
    from reverse.data.negatives import make_lexicon_negatives

    with show_progress("records") as progress:
        for made, counts, failures in make_lexicon_negatives(records, seed, pairs):
            part.write(made, counts, _number_failures(failures, part.done))
            progress(part.done)


async def _make_by_model(
    part: PartFile,
    records: Iterator[dict[str, Any]],
    pairs: frozenset[int],
    endpoint: Endpoint,
    options: NegativesOptions,
) -> None:
    from reverse.data.negatives.llm_negatives import request_negatives
    from reverse.endpoints.client import ChatClient
    from reverse.endpoints.reply_cache import ReplyCache

    out, total = options.out, part.counts()
    cache = ReplyCache(options.cache or out.with_name(out.name + ".replies.jsonl"))
    client = ChatClient(endpoint, cache, options.concurrency)
    try:
        with show_progress("records") as progress:
            async for made, counts, failures in request_negatives(
                records, client, options.seed, options.concurrency, pairs=pairs
            ):
                part.write(made, counts, _number_failures(failures, part.done))
                total.update(counts)
                progress(part.done, None, _describe_cost(total, options))
    finally:
        await client.aclose()
        cache.close()


def _find_pairs(source: Path, limit: int | None) -> frozenset[int]:
    """Read the set once to find the records that are paired with their negatives already."""
    from reverse.data.negatives import find_pairs
    from reverse.data.records.published_set import scan_records
    from reverse.files.json_scanning import JsonItem

    # Broken records are reported later, in their turn, so that what stands before them is made and kept.
    records = (item.value for item in scan_records(source) if isinstance(item, JsonItem))
    return find_pairs(islice(records, limit))


def _number_failures(failures: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Add the number of the input record to failures of a record without an id."""
    return [line if line["id"] is not None else line | {"record": number} for line in failures]


@contextmanager
def _open_pass(
    source: Path, out: Path, plan: Mapping[str, Any]
) -> Iterator[tuple[PartFile, Iterator[dict[str, Any]]]]:
    """Open the output of a pass; yield its part file and the records that are still to be processed."""
    from reverse.data.records.published_set import read_records, records_path
    from reverse.files.atomic_write import sha256
    from reverse.files.resumable_parts import PartFile

    path = records_path(source)  # a file, or an imported set, whose manifest names the hash of its source
    path = path / "manifest.json" if path.is_dir() else path
    if source.resolve() == out.resolve():
        raise RequestError(f"{out} is the input: name another file to write")
    full_plan = {"format": FORMAT, **plan, "input": source.name, "input_sha256": sha256(path)}
    with PartFile(out, full_plan) as part:
        if part.done:
            Console(stderr=True).print(f"continuing after {part.done} records", style="dim")
        try:
            yield part, islice(read_records(source), part.done, plan["limit"])
        except KeyboardInterrupt:
            Console(stderr=True).print(
                f"stopped after {part.done} records; the same command continues from there"
            )
            raise


def _describe_cost(counts: Mapping[str, float], options: NegativesOptions) -> str:
    read, written = counts.get("tokens_in", 0), counts.get("tokens_out", 0)
    line = f"{counts.get('replies', 0)} replies, {read} tokens in, {written} out"
    if options.price_in or options.price_out:
        line += f", {(read * options.price_in + written * options.price_out) / 1e6:.2f} money"
    return line
