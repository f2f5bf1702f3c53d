"""Scenes on disk: whole, in the published formats, and the same however they were made."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from reverse.data.pictures.opening import open_image, resolve_image
from reverse.data.records.published_set import read_records
from reverse.data.scenes import find_objects, make_scene, render_scene, write_scenes
from reverse.data.scenes.object_names import COCO_IDS

COUNT = 200  # four blocks, the last of them short


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken") / "scenes"
    write_scenes(root, "test", COUNT)
    return root


def test_layout_and_manifest(unbroken):
    """Without it: a file is missing, or the manifest vouches for something else."""
    assert sorted(p.name for p in unbroken.iterdir()) == [
        "captions.json", "images", "instances.json", "instruct.json", "manifest.json",
    ]  # fmt: skip
    manifest = json.loads((unbroken / "manifest.json").read_text())
    assert manifest["count"] == COUNT and manifest["seed"] == 0 and manifest["split"] == "test"
    for name in ("captions.json", "instances.json", "instruct.json"):
        assert hashlib.sha256((unbroken / name).read_bytes()).hexdigest() == manifest["sha256"][name]
    assert len(list((unbroken / "images").glob("*.png"))) == COUNT


def test_pictures_and_records_are_those_of_the_world(unbroken):
    """Without it: the exported picture is not the one that the records speak of."""
    records = list(read_records(unbroken / "instruct.json"))
    assert len({record["id"] for record in records}) == len(records)
    assert len({record["image"] for record in records}) == COUNT
    for record in records[:40]:
        picture = open_image(resolve_image(unbroken, record["image"]))
        index = int(record["id"].split("-")[1])
        assert (np.asarray(picture) == render_scene(make_scene("test", index))).all()


def test_coco_files_hold_the_truth(unbroken):
    """Without it: CHAIR reads another truth than the scenes have."""
    instances = json.loads((unbroken / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    assert len(names) == 80 and all(COCO_IDS[name] == number for number, name in names.items())
    found = {image["id"]: {} for image in instances["images"]}
    assert [a["id"] for a in instances["annotations"]] == list(range(1, len(instances["annotations"]) + 1))
    for annotation in instances["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 112 and y + height <= 112
        counts = annotation["segmentation"]["counts"]
        assert 0 < annotation["area"] == sum(counts[1::2]) <= width * height and sum(counts) <= 112 * 112
        seen = found[annotation["image_id"]]
        name = names[annotation["category_id"]]
        seen[name] = seen.get(name, 0) + 1
    for index, truth in found.items():
        assert truth == make_scene("test", index).truth
    for annotation in json.loads((unbroken / "captions.json").read_text())["annotations"]:
        for mention in find_objects(annotation["caption"]):
            assert found[annotation["image_id"]][mention.name] == mention.count


def test_worker_count_changes_nothing(unbroken, tmp_path):
    """Without it: data made on two machines differ, and so do the models."""
    seen = []
    write_scenes(
        tmp_path / "scenes", "test", COUNT, workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert digest(tmp_path / "scenes") == digest(unbroken)
    assert seen[-1] == (COUNT, COUNT) and len(seen) == 4


def test_killed_and_run_again_is_unbroken(unbroken, tmp_path):
    """Without it: a run that was killed loses or repeats scenes, or leaves torn files."""
    root = tmp_path / "scenes"
    code = f"from reverse.data.scenes import write_scenes; write_scenes({str(root)!r}, 'test', {COUNT})"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    end = time.monotonic() + 20
    while time.monotonic() < end and not (root / "parts" / "00000.json").exists():
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (root / "manifest.json").exists()
    (root / "images" / "test-000100.png.tmp").write_bytes(b"torn")
    made = []
    write_scenes(root, "test", COUNT, progress=lambda done, total: made.append(done))
    assert digest(root) == digest(unbroken)
    assert len(made) < 4  # the blocks that were done are not made again


def test_stopped_by_its_caller_and_run_again(unbroken, tmp_path):
    """Without it: Ctrl-C in the middle of a block spoils what comes after."""

    def stop(done, total):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "scenes", "test", COUNT, progress=stop)
    write_scenes(tmp_path / "scenes", "test", COUNT)
    assert digest(tmp_path / "scenes") == digest(unbroken)


def test_finished_directory_is_left_alone_and_others_refused(unbroken):
    """Without it: a second command mixes two data sets in one directory."""
    before = digest(unbroken)
    assert write_scenes(unbroken, "test", COUNT)["sha256"]
    with pytest.raises(ValueError, match="another directory"):
        write_scenes(unbroken, "test", COUNT + 1)
    with pytest.raises(ValueError, match="another directory"):
        write_scenes(unbroken, "test", COUNT, seed=1)
    assert digest(unbroken) == before


@pytest.mark.parametrize("arguments", [("nowhere", 5), ("test", 0)])
def test_bad_arguments_write_nothing(arguments, tmp_path):
    """Without it: a misspelt split leaves half a directory behind."""
    with pytest.raises(ValueError, match="got"):
        write_scenes(tmp_path / "scenes", *arguments)
    assert not (tmp_path / "scenes").exists()


def test_pictures_are_png_of_the_scene_size(unbroken):
    """Without it: a reader that trusts the COCO width and height crops wrongly."""
    with Image.open(unbroken / "images" / "test-000000.png") as image:
        assert image.size == (112, 112) and image.format == "PNG" and image.mode == "RGB"
