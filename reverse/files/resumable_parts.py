"""Write the results of a long pass over records so that it may be stopped at any moment and started again.

    with PartFile("tagged.json", {"command": "tag", "seed": 0}) as part:
        for record in islice(records, part.done, None):
            part.write([tagged], Counter(answers=1))
        manifest = part.finish()

On disk, in this order: `OUT.part` (JSON lines: the plan, then one line for each input record in input order,
flushed after each), `OUT.failures.jsonl` if there are failures, `OUT` (a JSON list, or lines if the name
ends in .jsonl), `OUT.manifest.json`; the last three are written atomically. Then `OUT.part` is removed. A
restart drops an incomplete last line and continues there; the counts of the manifest are summed from the
lines, so they equal those of an unbroken run. Memory holds one line at a time.

With `retries_failures` a restart continues at the first failed record instead, even if the pass was finished.
That is for results that are cached, so that repeating them is free.
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

LINE_SUFFIXES = (".jsonl", ".ndjson")
SYNC_EVERY = 1 << 20  # bytes that a power cut may cost; a kill costs nothing that was written


class PartFile:
    """Writes the results of one pass as they come.

    Args:
        out: the file to write; folders above it are created. ".json" makes a JSON list, ".jsonl" one record
        per line. plan: what determines the result (arguments, input); a part of another plan is refused.
        retries_failures: try records that failed again, and what stands behind the first of them.

    `done`: input records whose results are in the part. `manifest`: that of a finished pass, else None.

    Raises:
        DataError: `out` exists and was not made by this plan; a part of another plan; another suffix.
        OutputInUseError: another process writes it.
    """

    def __init__(self, out: str | Path, plan: Mapping[str, Any], *, retries_failures: bool = False):
        self.out = Path(out)
        self._retries_failures = retries_failures
        self.plan = dict(plan)
        self.done = 0
        self.manifest: dict[str, Any] | None = None
        self._unsynced = 0
        self._stack = ExitStack()
        if self.out.suffix not in (".json", *LINE_SUFFIXES):
            raise DataError(f"{self.out} must end in .json (a JSON list) or .jsonl (one record per line)")
        if self.out.parent.exists() and not self.out.parent.is_dir():
            raise DataError(f"{self.out}: {self.out.parent} is a file: name a folder")
        self.part, self.manifest_path, self.failures_path = (
            self.out.with_name(self.out.name + suffix)
            for suffix in (".part", ".manifest.json", ".failures.jsonl")
        )
        self._stack.enter_context(output_lock(self.out, reentrant=False))
        try:
            if self.part.exists() or not self._is_finished():
                self.part.touch()
                self._file: BufferedRandom = self._stack.enter_context(self.part.open("r+b"))
                self._resume()
        except BaseException:
            self.close()
            raise

    def write(
        self,
        records: Sequence[Mapping[str, Any]],
        counts: Mapping[str, float],
        failures: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Keep the results of the next input record."""
        assert self.manifest is None, "the pass is finished"
        line = {"records": list(records), "counts": dict(counts), "failures": list(failures)}
        self._unsynced += self._file.write(_to_json(line) + b"\n")
        self._file.flush()
        if self._unsynced > SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._unsynced = 0
        self.done += 1

    def finish(self) -> dict[str, Any]:
        """Write the output, its failures and its manifest; return the manifest."""
        if self.manifest is not None:
            return self.manifest
        self._file.flush()
        os.fsync(self._file.fileno())
        counts: Counter[str] = Counter()
        digest = hashlib.sha256()
        failed = 0

        def results() -> Iterator[bytes]:
            nonlocal failed
            with atomic_write(self.failures_path) as stream:
                for line in self._read_lines():
                    counts.update(line["counts"])
                    failed += len(line["failures"])
                    stream.writelines(_to_json(failure) + b"\n" for failure in line["failures"])
                    counts["records_out"] += len(line["records"])
                    yield from map(_to_json, line["records"])

        with atomic_write(self.out) as stream:
            for piece in _lay_out(results(), as_lines=self.out.suffix in LINE_SUFFIXES):
                digest.update(piece)
                stream.write(piece)
        if not failed:
            self.failures_path.unlink()
        rounded = {key: round(n, 6) if isinstance(n, float) else n for key, n in sorted(counts.items())}
        self.manifest = self.plan | {"counts": rounded, "sha256": digest.hexdigest()}
        write_json(self.manifest_path, self.manifest)
        self.close()
        self.part.unlink()
        return self.manifest

    def counts(self) -> Counter[str]:
        """Sum the counts of the lines so far."""
        total: Counter[str] = Counter()
        for line in self._read_lines():
            total.update(line["counts"])
        return total

    def close(self) -> None:
        """Close the part, which stays for the next start, and release the lock."""
        self._stack.close()

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _is_finished(self) -> bool:
        if self.manifest_path.exists() and self.out.exists():
            written = read_json(self.manifest_path)
            self._compare(written, self.out)
            if self._retries_failures and self.failures_path.exists():
                return False
            self.manifest = written
            return True
        if self.out.exists():
            raise DataError(f"{self.out} is there already: name another file, or remove it")
        return False

    def _resume(self) -> None:
        """Count the complete lines of the part and cut off the rest; write the plan if the part is empty."""
        good = 0
        for number, line in enumerate(self._file):
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if content is None:
                break  # torn by a kill: this record is made again
            if number == 0:
                if self.part.stat().st_size == len(line) and content != json.loads(_to_json(self.plan)):
                    break  # a part of another plan without results may be overwritten
                self._compare(content, self.part)
            elif self._retries_failures and content["failures"]:
                break  # from here on everything is made again
            else:
                self.done += 1
            good += len(line)
        self._file.seek(good)
        self._file.truncate()
        if good == 0:
            self._file.write(_to_json(self.plan) + b"\n")
            self._file.flush()

    def _compare(self, written: Mapping[str, Any], where: Path) -> None:
        """Raise DataError if the existing output has another plan."""
        other = [key for key in self.plan if written.get(key) != json.loads(_to_json(self.plan[key]))]
        if other:
            was = ", ".join(f"{key}={written.get(key)!r}" for key in other)
            now = ", ".join(f"{key}={self.plan[key]!r}" for key in other)
            raise DataError(f"{where} was made with {was}, not {now}: name another file, or remove it")

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        with self.part.open("rb") as stream:
            next(stream, None)  # the plan
            yield from map(json.loads, stream)


def _lay_out(records: Iterable[bytes], *, as_lines: bool) -> Iterator[bytes]:
    """Yield the pieces of a file of records: JSON lines or a JSON list."""
    if as_lines:
        for record in records:
            yield record + b"\n"
        return
    between = b"[\n"
    for record in records:
        yield between + record
        between = b",\n"
    yield b"[]\n" if between == b"[\n" else b"\n]\n"


def _to_json(content: Any) -> bytes:
    return json_bytes(content, separators=(",", ":"))
