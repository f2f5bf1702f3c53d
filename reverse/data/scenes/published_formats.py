"""Write scenes to disk in the published formats, so that programs that read COCO can read them.

    out/images/test-000000.png …   out/instruct.json    published instruct records, prejudiced annotator
    out/instances.json             COCO instances       out/captions.json    COCO captions, all true
    out/manifest.json              arguments, versions, SHA-256 of everything; written last

Crash safety: `block_writing`.

    >>> write_scenes("scenes/test", "test", 500)["count"]
    500
"""

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from reverse.data.scenes.block_writing import (
    BlockFormat,
    BlockParts,
    encode_json,
    write_block_file,
    write_blocks,
)
from reverse.data.scenes.captions import PREJUDICE, make_scene_rng, write_caption
from reverse.data.scenes.object_names import COCO_IDS
from reverse.data.scenes.rendering import render_scene
from reverse.data.scenes.scene import SIDE, WORLD_VERSION, Scene, make_owner_map, make_scene
from reverse.data.scenes.scene_questions import make_scene_records
from reverse.tokens.spans import remove_tags

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
    make_scene(split, 0, seed, side)  # its errors come before the first file
    plan = {
        "format": 1, "world": WORLD_VERSION, "split": split, "count": count, "seed": seed, "side": side,
        "prejudice": prejudice, "numpy": np.__version__, "pillow": PIL.__version__,
    }  # fmt: skip
    return write_blocks(Path(out), plan, _FORMAT, workers, progress)


def make_coco_annotations(scene: Scene, first_id: int = 1) -> list[dict[str, Any]]:
    """Make COCO instance annotations of a scene, back to front, of the visible part of each object.

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
    """Encode a mask as run lengths, column by column, beginning with the zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return counts if counts[-1] else counts[:-1]


def _make_scene_block(out: Path, plan: dict[str, Any], block: range) -> dict[str, list]:
    part: dict[str, list] = {"instruct": [], "images": [], "annotations": [], "captions": [], "sha256": []}
    for index in block:
        scene = make_scene(plan["split"], index, plan["seed"], plan["side"])
        buffer = io.BytesIO()
        Image.fromarray(render_scene(scene)).save(buffer, "PNG")
        name = f"{scene.id}.png"
        write_block_file(out / "images" / name, buffer.getvalue())
        part["sha256"].append(hashlib.sha256(buffer.getvalue()).hexdigest())
        part["images"].append({"id": index, "file_name": name, "width": scene.side, "height": scene.side})
        part["annotations"] += make_coco_annotations(scene)
        part["instruct"] += make_scene_records(scene, prejudice=plan["prejudice"])
        rng = make_scene_rng(scene, 5)
        part["captions"] += [
            {"image_id": index, "caption": remove_tags(write_caption(scene, rng, prejudice=0).text)}
            for _ in range(2)
        ]
    return part


def _list_scene_files(plan: dict[str, Any], parts: BlockParts) -> dict[str, list[bytes]]:
    info = {"description": f"REVERSE scenes, {plan['split']} split, seed {plan['seed']}", "version": "1"}
    categories = [
        {"id": number, "name": name, "supercategory": SUPERCATEGORY} for name, number in COCO_IDS.items()
    ]
    images = list(parts.rows("images"))
    files = {
        "instruct.json": list(parts.rows("instruct")),
        "instances.json": {
            "info": info, "images": images, "annotations": _add_ids(parts.rows("annotations")),
            "categories": categories,
        },
        "captions.json": {"info": info, "images": images, "annotations": _add_ids(parts.rows("captions"))},
    }  # fmt: skip
    return {name: [encode_json(content)] for name, content in files.items()}


def _add_ids(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"id": number} for number, row in enumerate(rows, 1)]


_FORMAT = BlockFormat(_make_scene_block, _list_scene_files, "scenes")
