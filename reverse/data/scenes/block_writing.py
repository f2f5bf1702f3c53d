"""Write a folder of pictures and records in blocks; it may be stopped at any moment and started again.

Crash safety: a block's pictures are written first, then its records as `out/parts/00012.json`; each file
under a temporary name, flushed to disk, then renamed. So a part exists only if its pictures do. A restart
skips the blocks whose parts exist; when all parts exist, the files of the folder are written from them, the
manifest last, and the parts are removed. A finished folder is left as it is. What a block holds depends only
on its number, so the result is the same byte for byte, however often the run was killed and however many
workers made it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.files.atomic_write import json_bytes, replace_file, sync_folder
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import read_json

__all__ = ["BLOCK", "BlockFormat", "BlockParts", "encode_json", "write_block_file", "write_blocks"]

BLOCK = 64  # pictures
Plan = dict[str, Any]
Part = dict[str, list]


@dataclass(frozen=True)
class BlockParts:
    """The parts of all blocks, read one at a time."""

    paths: tuple[Path, ...]

    def rows(self, key: str) -> Iterator[Any]:
        """Yield what the blocks list under a key, in order."""
        for path in self.paths:
            yield from read_json(path)[key]


@dataclass(frozen=True)
class BlockFormat:
    """The contents of a kind of folder. Both functions must be top-level, because other processes call them.

    make_block: writes the pictures of a range of numbers under `out` and returns their records by key;
    "sha256" lists the pictures' hashes. list_files: the files of the finished folder, by their path under it,
    in pieces. what: what the folder holds, for errors.
    """

    make_block: Callable[[Path, Plan, range], Part]
    list_files: Callable[[Plan, BlockParts], Mapping[str, Iterable[bytes]]]
    what: str


def write_blocks(
    out: Path,
    plan: Plan,
    form: BlockFormat,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a folder for `plan`, which holds all arguments and `count`, and return its manifest.

    `progress(done, total)` is called after every block. Raises DataError if `out` is a file or holds files
    that another plan or program made.
    """
    if plan["count"] < 1 or workers < 1:
        raise DataError(f"count and workers must be at least 1, got count={plan['count']}, workers={workers}")
    with output_lock(out):
        finished = _check_plan(out, plan, form.what)
        if finished is not None:
            return finished
        count = plan["count"]
        blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
        todo = [block for block in blocks if not _part_path(out, block).exists()]
        done = len(blocks) - len(todo)
        for _ in _run_blocks(form, out, plan, todo, workers):
            done += 1
            if progress is not None:
                progress(min(done * BLOCK, count), count)
        return _join_parts(out, plan, form, BlockParts(tuple(_part_path(out, block) for block in blocks)))


def write_block_file(path: Path, data: bytes) -> None:
    """Write a file of a block under a temporary name, then rename it."""
    with replace_file(path) as stream:
        stream.write(data)


def encode_json(content: Any) -> bytes:
    """Return compact JSON with a newline at its end."""
    return json_bytes(content, separators=(",", ":")) + b"\n"


def _check_plan(out: Path, plan: Plan, what: str) -> dict[str, Any] | None:
    """Create the directories; return the manifest if `out` is already finished."""
    for path in (out / "manifest.json", out / "parts" / "plan.json"):
        if not path.exists():
            continue
        written = read_json(path)
        other = {key: written.get(key) for key in plan if written.get(key) != plan[key]}
        if other:
            wanted = {key: plan[key] for key in other}
            raise DataError(f"{out} holds {what} made with {other}, not {wanted}: choose another directory")
        if path.name == "manifest.json":
            shutil.rmtree(out / "parts", ignore_errors=True)  # killed after the manifest was written
            return written
        return None
    _check_empty(out)
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "parts").mkdir(exist_ok=True)
    write_block_file(out / "parts" / "plan.json", encode_json(plan))
    return None


def _check_empty(out: Path) -> None:
    """Raise an error for a folder with foreign files; leftovers of a run that was killed at its start are
    allowed.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a folder to write, which need not exist")
    for path in out.rglob("*"):
        if path.name not in ("plan.json.tmp", ".lock") and (path.is_symlink() or not path.is_dir()):
            raise DataError(
                f"{out} holds {path.relative_to(out)}, which is not a scene: name an empty folder"
            )


def _part_path(out: Path, block: range) -> Path:
    return out / "parts" / f"{block.start // BLOCK:05d}.json"


def _run_blocks(
    form: BlockFormat, out: Path, plan: Plan, blocks: Sequence[range], workers: int
) -> Iterator[None]:
    """Make the blocks in processes, and yield after each block."""
    if workers == 1 or len(blocks) < 2:
        for block in blocks:
            _make_block(form, out, plan, block)
            yield
        return
    # "spawn": a fork of a process with threads (torch's) may hang.
    pool = ProcessPoolExecutor(min(workers, len(blocks)), mp_context=get_context("spawn"))
    try:
        todo = iter(blocks)

        def submit(count: int) -> set[Future]:
            return {pool.submit(_make_block, form, out, plan, block) for block in islice(todo, count)}

        running = submit(2 * workers)
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                running |= submit(1)
                future.result()
                yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_block(form: BlockFormat, out: Path, plan: Plan, block: range) -> None:
    part = form.make_block(out, plan, block)
    sync_folder(out / "images")
    write_block_file(_part_path(out, block), encode_json(part))


def _join_parts(out: Path, plan: Plan, form: BlockFormat, parts: BlockParts) -> dict[str, Any]:
    digests = {}
    for name, pieces in form.list_files(plan, parts).items():
        digest = hashlib.sha256()
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as stream:
            for piece in pieces:
                digest.update(piece)
                stream.write(piece)
        digests[name] = digest.hexdigest()
    digests["images"] = hashlib.sha256("".join(parts.rows("sha256")).encode()).hexdigest()
    manifest = plan | {"sha256": digests}
    write_block_file(out / "manifest.json", encode_json(manifest))
    shutil.rmtree(out / "parts")
    for leftover in out.glob("images/*.tmp"):  # of a worker that was killed; its picture exists again
        leftover.unlink()
    return manifest
