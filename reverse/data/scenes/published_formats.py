"""Write scenes to disk in the published formats, so that programs that read COCO can read them.

    out/images/test-000000.png …   out/instruct.json    published instruct records, prejudiced annotator
    out/instances.json             COCO instances       out/captions.json    COCO captions, all true
    out/manifest.json              arguments, versions, SHA-256 of everything; written last

Crash safety: scenes are made in blocks of 64. A block's pictures are written first, then its records as
`out/parts/00012.json`; each file under a temporary name, flushed to disk, then renamed. So a part exists only
if its pictures do. A restart skips the blocks whose parts exist; when all parts exist they are joined, then
removed. A finished directory is left as it is. Every scene depends only on its number, so the result is the
same byte for byte, however often the run was killed and however many workers made it.

    >>> write_scenes("scenes/test", "test", 500)["count"]
    500
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from reverse.data.scenes.captions import PREJUDICE, make_scene_rng, write_caption
from reverse.data.scenes.object_names import COCO_IDS
from reverse.data.scenes.rendering import render_scene
from reverse.data.scenes.scene import SIDE, WORLD_VERSION, Scene, make_owner_map, make_scene
from reverse.data.scenes.scene_questions import make_scene_records
from reverse.errors import DataError
from reverse.files.atomic_write import replace_file, sync_folder
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import read_json
from reverse.tokens.spans import remove_tags

BLOCK = 64  # scenes
SUPERCATEGORY = "object"


def write_scenes(
    out: str | Path,
    split: str,
    count: int,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    *,
    side: int = SIDE,
    prejudice: float = PREJUDICE,
) -> dict[str, Any]:
    """Write scenes 0 … count-1 of a split under `out`, and return the manifest.

    `progress(done, total)` is called after every block. Killed at any moment and called again with the same
    arguments, it goes on where it was. Raises DataError for a bad argument, and if `out` is a file or holds
    anything but scenes made with these arguments.
    """
    if count < 1 or workers < 1:
        raise DataError(f"count and workers must be at least 1, got count={count}, workers={workers}")
    make_scene(split, 0, seed, side)  # its errors come before the first file
    out = Path(out)
    plan = {
        "format": 1, "world": WORLD_VERSION, "split": split, "count": count, "seed": seed, "side": side,
        "prejudice": prejudice, "numpy": np.__version__, "pillow": PIL.__version__,
    }  # fmt: skip
    with output_lock(out):
        finished = _check_plan(out, plan)
        return finished if finished is not None else _write_blocks(out, plan, workers, progress)


def _write_blocks(
    out: Path, plan: dict[str, Any], workers: int, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    count = plan["count"]
    blocks = [(str(out), plan, start) for start in range(0, count, BLOCK)]
    todo = [block for block in blocks if not _part_path(out, block[2]).exists()]
    done = len(blocks) - len(todo)
    for _ in _run_blocks(todo, workers):
        done += 1
        if progress is not None:
            progress(min(done * BLOCK, count), count)
    return _join_parts(out, plan, [_part_path(out, start) for _, _, start in blocks])


def make_coco_annotations(scene: Scene, first_id: int = 1) -> list[dict[str, Any]]:
    """COCO instance annotations of a scene, back to front: what is visible of each object.

    bbox is [x, y, width, height] in pixels, area a count of pixels, segmentation an uncompressed RLE
    (column by column, as COCO's own masks).
    """
    owner = make_owner_map(scene)
    annotations = []
    for i, thing in enumerate(scene.objects):
        mask = owner == i
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "id": first_id + i,
                "image_id": scene.index,
                "category_id": COCO_IDS[thing.name],
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [scene.side, scene.side], "counts": _encode_rle(mask)},
            }
        )
    return annotations


def _encode_rle(mask: np.ndarray) -> list[int]:
    """Run lengths, column by column, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return counts if counts[-1] else counts[:-1]


def _check_plan(out: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Create the directories; return the manifest if `out` is already finished."""
    for path in (out / "manifest.json", out / "parts" / "plan.json"):
        if not path.exists():
            continue
        written = read_json(path)
        other = {key: written.get(key) for key in plan if written.get(key) != plan[key]}
        if other:
            wanted = {key: plan[key] for key in other}
            raise DataError(f"{out} holds scenes made with {other}, not {wanted}: choose another directory")
        if path.name == "manifest.json":
            shutil.rmtree(out / "parts", ignore_errors=True)  # killed after the manifest was written
            return written
        return None
    _check_empty(out)
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "parts").mkdir(exist_ok=True)
    _write(out / "parts" / "plan.json", _json(plan))
    return None


def _check_empty(out: Path) -> None:
    """Refuse a folder with other files; those of a run that was killed at its start do not count."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a folder to write, which need not exist")
    for path in out.rglob("*"):
        if path.name not in ("plan.json.tmp", ".lock") and (path.is_symlink() or not path.is_dir()):
            raise DataError(f"{out} holds {path.relative_to(out)}, which is no scene: name an empty folder")


def _part_path(out: Path, start: int) -> Path:
    return out / "parts" / f"{start // BLOCK:05d}.json"


def _run_blocks(blocks: list[tuple[str, dict[str, Any], int]], workers: int) -> Iterator[None]:
    """Make the blocks, and yield after each."""
    if workers == 1 or len(blocks) < 2:
        for block in blocks:
            _make_block(block)
            yield
        return
    # "spawn": a fork of a process with threads (torch's) may hang.
    pool = ProcessPoolExecutor(min(workers, len(blocks)), mp_context=get_context("spawn"))
    try:
        todo = iter(blocks)
        running: set[Future] = {pool.submit(_make_block, block) for block in islice(todo, 2 * workers)}
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                running |= {pool.submit(_make_block, block) for block in islice(todo, 1)}
                future.result()
                yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_block(block: tuple[str, dict[str, Any], int]) -> None:
    root, plan, start = block
    out = Path(root)
    part: dict[str, list] = {"instruct": [], "images": [], "annotations": [], "captions": [], "sha256": []}
    for index in range(start, min(start + BLOCK, plan["count"])):
        scene = make_scene(plan["split"], index, plan["seed"], plan["side"])
        buffer = io.BytesIO()
        Image.fromarray(render_scene(scene)).save(buffer, "PNG")
        name = f"{scene.id}.png"
        _write(out / "images" / name, buffer.getvalue())
        part["sha256"].append(hashlib.sha256(buffer.getvalue()).hexdigest())
        part["images"].append({"id": index, "file_name": name, "width": scene.side, "height": scene.side})
        part["annotations"] += make_coco_annotations(scene)
        part["instruct"] += make_scene_records(scene, prejudice=plan["prejudice"])
        rng = make_scene_rng(scene, 5)
        part["captions"] += [
            {"image_id": index, "caption": remove_tags(write_caption(scene, rng, prejudice=0).text)}
            for _ in range(2)
        ]
    sync_folder(out / "images")
    _write(_part_path(out, start), _json(part))


def _join_parts(out: Path, plan: dict[str, Any], paths: list[Path]) -> dict[str, Any]:
    parts = [read_json(path) for path in paths]

    def rows(key: str) -> list[dict[str, Any]]:
        return [row for part in parts for row in part[key]]

    info = {"description": f"REVERSE scenes, {plan['split']} split, seed {plan['seed']}", "version": "1"}
    categories = [
        {"id": number, "name": name, "supercategory": SUPERCATEGORY} for name, number in COCO_IDS.items()
    ]
    files = {
        "instruct.json": rows("instruct"),
        "instances.json": {
            "info": info, "images": rows("images"), "annotations": _add_ids(rows("annotations")),
            "categories": categories,
        },
        "captions.json": {"info": info, "images": rows("images"), "annotations": _add_ids(rows("captions"))},
    }  # fmt: skip
    digests = {}
    for name, content in files.items():
        data = _json(content)
        digests[name] = hashlib.sha256(data).hexdigest()
        _write(out / name, data)
    digests["images"] = hashlib.sha256("".join(rows("sha256")).encode()).hexdigest()  # type: ignore[arg-type]
    manifest = plan | {"sha256": digests}
    _write(out / "manifest.json", _json(manifest))
    shutil.rmtree(out / "parts")
    for leftover in out.glob("images/*.tmp"):  # of a worker that was killed; its picture exists again
        leftover.unlink()
    return manifest


def _add_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"id": number} for number, row in enumerate(rows, 1)]


def _json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with replace_file(path) as stream:
        stream.write(data)
