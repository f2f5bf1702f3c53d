"""Draw a seeded part of a set, or matching parts of the tagged and the plain set.

    subsample("reverse_1.3m", "tagged_100k.json", 100_000, seed=0,
              plain="llava_v1_5_mix665k.json", plain_out="plain_100k.json")

Matching parts have `n` records in the same order; record k of one has the id of record k of the other. Ids
repeat in the published sets: one tagged record is drawn for each id and is matched with the plain record that
asks the same questions or, if none does, with the first of that id. A negative with the id `X-neg` (from
`reverse data negatives` and scenes) counts as a record of id X, unless the plain set holds `X-neg` too. The
text of a record does not change.

Crash safety: parts are written atomically, then the manifests beside them. A stopped run leaves no part and
is run again.
"""

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from reverse.data.records.published_set import ImportedRecords, Progress, Records, id_text, open_records
from reverse.data.records.schema import IMAGE_TOKEN, NEGATIVE
from reverse.errors import DataError
from reverse.files.atomic_write import atomic_write, sha256, write_json
from reverse.files.file_lock import output_lock

KIND = "reverse subset"
Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def subsample(
    path: str | Path,
    out: str | Path,
    n: int,
    *,
    seed: int = 0,
    plain: str | Path | None = None,
    plain_out: str | Path | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `n` records drawn by `seed` to `out`, in the order of the file; return the manifest.

    Args:
        path: an imported folder, a folder of scenes, or a JSON file; `plain` too.
        plain: the set without tags; `plain_out` gets its records of the same ids.
        allow_missing: draw among the ids that both sets have, and count the others in the manifest.
        progress: is called with what is read of a file, and the total.

    Raises:
        DataError: fewer than `n` records or ids, an output that exists, a record without an id to match, or
            (not with `allow_missing`) a tagged id that the plain set lacks.
    """
    if n < 1:
        raise DataError(f"n must be at least 1, got {n}")
    if (plain is None) != (plain_out is None):
        raise DataError("a plain set and a place for its part belong together: give both or none")
    outputs = [Path(name) for name in (out, plain_out) if name is not None]
    if len({name.resolve() for name in outputs}) < len(outputs):
        raise DataError(f"both parts would be written to {outputs[0]}: name two files")
    with ExitStack() as locks:
        for name in outputs:
            locks.enter_context(output_lock(name))
        for name in outputs:
            if name.exists() or manifest_path(name).exists():
                raise DataError(f"{name} or its manifest exists: remove it, or name another file")
            name.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        tagged = open_records(path, progress)
        sources = [tagged]
        facts: dict[str, Any] = {}
        if plain is None:
            if n > len(tagged):
                raise DataError(f"n must be at most {len(tagged)}, the records of {path}, got {n}")
            chosen = [np.sort(rng.choice(len(tagged), n, replace=False))]
        else:
            sources.append(open_records(plain, progress))
            first, second, facts = _draw_matching(sources[0], sources[1], n, rng, allow_missing, progress)
            chosen = [first, second]
        digests = _write_parts(outputs, sources, chosen)
        manifest = _make_manifest(sources, outputs, digests, n, seed, facts)
        for name in outputs:
            write_json(manifest_path(name), manifest)
        return manifest


def manifest_path(out: str | Path) -> Path:
    """Return the path of a part's manifest: subset.json has subset.manifest.json."""
    return Path(out).with_suffix(".manifest.json")


def _draw_matching(
    tagged: Records,
    plain: Records,
    n: int,
    rng: np.random.Generator,
    allow_missing: bool,
    progress: Progress | None,
) -> tuple[Ints, Ints, dict[str, Any]]:
    """Return the indices drawn of both sets, in the order of the tagged one, and counts for the manifest."""
    own_ids, of_records, questions = _hash_records(tagged, progress)
    plain_ids, _, plain_questions = _hash_records(plain, progress)
    ids = np.where(np.isin(own_ids, plain_ids), own_ids, of_records)
    lost = np.flatnonzero(~np.isin(ids, plain_ids))
    facts = {
        "ids_only_tagged": len(np.unique(ids[lost])),
        "ids_only_plain": len(np.setdiff1d(plain_ids, ids)),
    }
    if len(lost) and not allow_missing:
        name = id_text(tagged[int(lost[0])])
        raise DataError(
            f"{facts['ids_only_tagged']} ids are not in the plain set, the first is {name!r} of record "
            f"{lost[0]}: is it the file that the tagged one was made of? --allow-missing leaves them out"
        )
    # The first of each id in a random order is one drawn at random; then the ids, by their first place.
    shuffled = rng.permutation(np.setdiff1d(np.arange(len(ids)), lost))
    one_each = np.sort(shuffled[np.unique(ids[shuffled], return_index=True)[1]])
    if n > len(one_each):
        raise DataError(f"n must be at most {len(one_each)}, the different ids that both sets have, got {n}")
    first = np.sort(rng.choice(one_each, n, replace=False))
    partners: dict[int, list[int]] = {}
    for k in np.flatnonzero(np.isin(plain_ids, ids[first])).tolist():
        partners.setdefault(int(plain_ids[k]), []).append(k)
    second = []
    alike = 0
    for k in first.tolist():
        of_id = partners[int(ids[k])]
        same = [p for p in of_id if plain_questions[p] == questions[k]]
        alike += bool(same)
        second.append((same or of_id)[0])
    named = int(np.count_nonzero(ids[first] != own_ids[first]))
    facts |= {"same_questions": alike, "other_questions": n - alike, "neg_ids": named}
    return first, np.array(second, dtype=np.int64), facts


def _hash_records(records: Records, progress: Progress | None) -> tuple[Hashes, Hashes, Hashes]:
    """Return 64-bit hashes of each record's id, its id without "-neg", and its questions.

    Questions are hashed in any order and without `<image>`.
    """
    ids, of_records, questions = (np.empty(len(records), dtype=np.uint64) for _ in range(3))
    for k, item in enumerate(records.scan(progress)):
        name = id_text(item.value)
        if name is None:
            raise DataError(f"{records.where(k)} has no id: records are matched by id, so each needs one")
        asked = {turn["value"].replace(IMAGE_TOKEN, "").strip() for turn in item.value["conversations"][::2]}
        ids[k] = _hash(name)
        of_records[k] = _hash(name.removesuffix(NEGATIVE)) if name.endswith(NEGATIVE) else ids[k]
        questions[k] = _hash("\0".join(sorted(asked)))
    return ids, of_records, questions


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _write_parts(outputs: list[Path], sources: list[Records], chosen: list[Ints]) -> list[str]:
    """Write the parts, all or none; return their SHA-256."""
    digests = []
    with ExitStack() as stack:
        streams = [stack.enter_context(atomic_write(name)) for name in outputs]
        for stream, records, indices in zip(streams, sources, chosen, strict=True):
            digests.append(_write_list(stream, (records.text(k) for k in indices.tolist())))
    return digests


def _write_list(stream: BinaryIO, texts: Iterable[str]) -> str:
    digest = hashlib.sha256()

    def write(data: bytes) -> None:
        stream.write(data)
        digest.update(data)

    for k, text in enumerate(texts):
        write(b",\n" if k else b"[\n")
        write(text.encode("utf-8"))
    write(b"\n]\n")
    return digest.hexdigest()


def _make_manifest(
    sources: list[Records], outputs: list[Path], digests: list[str], n: int, seed: int, facts: dict[str, Any]
) -> dict[str, Any]:
    from reverse import __version__

    parts = [
        {"file": name.name, "sha256": digest, "source": _describe_source(records)}
        for name, digest, records in zip(outputs, digests, sources, strict=True)
    ]
    versions = {"reverse": __version__, "numpy": np.__version__}
    return {"kind": KIND, "format": 1, "n": n, "seed": seed, "parts": parts} | facts | {"versions": versions}


def _describe_source(records: Records) -> dict[str, Any]:
    if isinstance(records, ImportedRecords):
        source = records.manifest["source"]
        return {"name": source["name"], "sha256": source["sha256"], "records": len(records)}
    return {"name": records.path.name, "sha256": sha256(records.path), "records": len(records)}
