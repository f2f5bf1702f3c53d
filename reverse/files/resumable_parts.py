"""A long pass over records that may be stopped at any moment and started again.

    part = PartFile("tagged.json", {"command": "tag", "seed": 0})
    for record in islice(records, part.done, None):
        part.write([tagged], Counter(answers=1))
    manifest = part.finish()

On disk, in this order: `OUT.part` (JSON lines: the plan, then one line an input record, in input order,
flushed after each), `OUT.failures.jsonl` where there are any, `OUT` (a JSON list, or lines where the name
ends in .jsonl), `OUT.manifest.json`; the last three each under a temporary name, synced, renamed. Then
`OUT.part` goes. A restart drops a last line that is torn, and goes on behind the whole ones; the counts of
the manifest are summed from the lines, so they are those of an unbroken run. One line stands in memory at a
time.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BufferedRandom
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.files.atomic_write import atomic_write, json_bytes, write_json
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import read_json

LINES = (".jsonl", ".ndjson")
SYNC_EVERY = 1 << 20  # bytes: what a power cut may cost; a killed process loses nothing that was written


class PartFile:
    """Results of one pass, written as they come.

    Args:
        out: the file to be; folders above it are made. ".json" makes a JSON list, ".jsonl" one record a line.
        plan: what determines the result (arguments, input); a part with another plan is refused.

    `done`: input records that are in the part already. `manifest`: that of a finished pass, else None.

    Raises:
        ValueError: `out` is there and was not made by this plan; a part of another plan; another suffix;
            another process is at it.
    """

    def __init__(self, out: str | Path, plan: Mapping[str, Any]):
        self.out = Path(out)
        self.plan = dict(plan)
        self.done = 0
        self.manifest: dict[str, Any] | None = None
        self._file: BufferedRandom | None = None
        self._unsynced = 0
        if self.out.suffix not in (".json", *LINES):
            raise DataError(f"{self.out} must end in .json (a JSON list) or .jsonl (one record a line)")
        if self.out.parent.exists() and not self.out.parent.is_dir():
            raise DataError(f"{self.out}: {self.out.parent} is a file: name a folder")
        self.part = self.out.with_name(self.out.name + ".part")
        self.manifest_path = self.out.with_name(self.out.name + ".manifest.json")
        self.failures_path = self.out.with_name(self.out.name + ".failures.jsonl")
        self._lock = ExitStack()
        self._lock.enter_context(output_lock(self.out, reentrant=False))
        try:
            if self.part.exists() or not self._is_finished():
                self._open()
        except BaseException:
            self.close()
            raise

    def write(
        self,
        records: Sequence[Mapping[str, Any]],
        counts: Mapping[str, float],
        failures: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Keep what came of the next input record."""
        assert self._file is not None, "the pass is finished"
        line = _json({"records": list(records), "counts": dict(counts), "failures": list(failures)}) + b"\n"
        self._file.write(line)
        self._file.flush()
        self._unsynced += len(line)
        if self._unsynced > SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._unsynced = 0
        self.done += 1

    def finish(self) -> dict[str, Any]:
        """Write the file and its manifest; returns the manifest."""
        if self.manifest is not None:
            return self.manifest
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        counts: Counter[str] = Counter()
        digest = hashlib.sha256()
        failed = [0]

        def results() -> Iterator[bytes]:
            with atomic_write(self.failures_path) as failures:
                for line in self._lines():
                    counts.update(line["counts"])
                    for failure in line["failures"]:
                        failures.write(_json(failure) + b"\n")
                        failed[0] += 1
                    for record in line["records"]:
                        counts["records_out"] += 1
                        yield _json(record)

        with atomic_write(self.out) as stream:
            for piece in _layout(results(), lines=self.out.suffix in LINES):
                digest.update(piece)
                stream.write(piece)
        if not failed[0]:
            self.failures_path.unlink()
        rounded = {
            key: round(value, 6) if isinstance(value, float) else value for key, value in counts.items()
        }
        manifest = self.plan | {"counts": dict(sorted(rounded.items())), "sha256": digest.hexdigest()}
        write_json(self.manifest_path, manifest)
        self.close()
        self.part.unlink()
        self.manifest = manifest
        return manifest

    def counts(self) -> Counter[str]:
        """What the lines so far add up to."""
        total: Counter[str] = Counter()
        for line in self._lines():
            total.update(line["counts"])
        return total

    def close(self) -> None:
        """Let go of the part; it stays for the next start."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _is_finished(self) -> bool:
        if self.manifest_path.exists() and self.out.exists():
            written = read_json(self.manifest_path)
            self._compare(written, self.out)
            self.manifest = written
            return True
        if self.out.exists():
            raise DataError(f"{self.out} is there already: name another file, or remove it")
        return False

    def _open(self) -> None:
        if not self.part.exists():
            self.part.touch()
        self._file = self.part.open("r+b")
        good = 0
        for number, line in enumerate(self._file):
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if content is None:
                break  # torn by a kill: this record is made again
            if number == 0:
                if self.part.stat().st_size == len(line) and content != json.loads(_json(self.plan)):
                    break  # of a run that made nothing
                self._compare(content, self.part)
            else:
                self.done += 1
            good += len(line)
        self._file.seek(good)
        self._file.truncate()
        if good == 0:
            self._file.write(_json(self.plan) + b"\n")
            self._file.flush()

    def _compare(self, written: Mapping[str, Any], where: Path) -> None:
        other = [key for key in self.plan if written.get(key) != json.loads(_json(self.plan[key]))]
        if other:
            was = ", ".join(f"{key}={written.get(key)!r}" for key in other)
            now = ", ".join(f"{key}={self.plan[key]!r}" for key in other)
            self.close()
            raise DataError(f"{where} was made with {was}, not {now}: name another file, or remove it")

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.part.open("rb") as stream:
            next(stream, None)
            for line in stream:
                yield json.loads(line)


def _layout(records: Iterable[bytes], *, lines: bool) -> Iterator[bytes]:
    if lines:
        for record in records:
            yield record + b"\n"
        return
    between = b"[\n"
    for record in records:
        yield between + record
        between = b",\n"
    yield b"[]\n" if between == b"[\n" else b"\n]\n"


def _json(content: Any) -> bytes:
    return json_bytes(content, separators=(",", ":"))
