"""Choose the pictures of `reverse demo`: test scenes where the plain answer errs and checking mends it.

    python playground/art/make_demo.py --model tiny-llava          # writes three into reverse/assets/demo

The first `--count` scenes of the `test` split are answered with checking off; those with an object that is
not there are answered again with checking on, one by one, as the demo does. The three kept (of different
themes) are those where no absent object remains, no phrase stays suspect and true objects are not lost, with
about `ATTEMPTS` attempts. Run it again whenever the bundled model changes.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from reverse import demo
from reverse.api import generate
from reverse.data.scenes import Scene, find_objects, make_scene, render_scene
from reverse.decoding.result import Result
from reverse.models import load

ATTEMPTS = 3  # enough to see the temperature rise; a longer table is not read
MOST_ATTEMPTS = 8


def picture(scene: Scene) -> Image.Image:
    return Image.fromarray(render_scene(scene))


def named(result: Result, scene: Scene) -> int:
    """How many of the scene's objects the answer names."""
    return len({mention.name for mention in find_objects(result.text)} & set(scene.truth))


def exaggerates(result: Result, scene: Scene) -> bool:
    """Whether the answer counts more of something than there are."""
    return any(mention.count > scene.truth.get(mention.name, 0) for mention in find_objects(result.text))


def rank(scene: Scene, plain: Result, checked: Result) -> tuple | None:
    """A sort key, best first, or None where the pair shows nothing."""
    if not demo.find_wrong_mentions(plain.text, scene.truth) or exaggerates(checked, scene):
        return None
    said = [mention.name for mention in find_objects(checked.text)]
    if len(said) != len(set(said)):  # true, but no pleasure to read
        return None
    if not checked.resolved or not 1 <= len(checked.trace) <= MOST_ATTEMPTS:
        return None
    if {plain.finish_reason, checked.finish_reason} != {"eos"}:
        return None
    lost = max(0, named(plain, scene) - named(checked, scene))
    missing = len(scene.truth) - named(checked, scene)
    return lost, abs(len(checked.trace) - ATTEMPTS), missing, scene.index


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--threshold", type=float, help="else the checkpoint's own")
    parser.add_argument("--count", type=int, default=300, help="test scenes to search (default: %(default)s)")
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--out", type=Path, default=demo.FOLDER)
    given = parser.parse_args()

    model, processor = load(given.model)
    scenes = [make_scene("test", index) for index in range(given.count)]
    plain = generate(
        model,
        processor,
        images=[picture(scene) for scene in scenes],
        prompt=demo.PROMPT,
        mode="plain",
        max_new_tokens=demo.MAX_NEW_TOKENS,
        batch_size=16,
    )
    found = []
    for scene, first in zip(scenes, plain, strict=True):
        if demo.find_wrong_mentions(first.text, scene.truth):
            pair = demo.compare_answers(model, processor, picture(scene), given.threshold)
            key = rank(scene, *pair)
            if key is not None:
                found.append((key, scene, pair))
    found.sort(key=lambda entry: entry[0])

    chosen = []
    for entry in found:
        if entry[1].theme not in {scene.theme for _, scene, _ in chosen} and len(chosen) < given.keep:
            chosen.append(entry)
    if len(chosen) < given.keep:
        raise SystemExit(f"{len(chosen)} of {given.keep} found in {given.count} scenes: raise --count")

    given.out.mkdir(parents=True, exist_ok=True)
    for old in (*given.out.glob("test-*.png"), *given.out.glob("test-*.json")):
        old.unlink()
    for key, scene, (before, after) in chosen:
        path = given.out / f"{scene.id}.png"
        picture(scene).save(path, optimize=True)
        about = {"scene": scene.id, "truth": scene.truth, "made_by": "playground/art/make_demo.py"}
        path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        print(f"{path}  {key}\n  plain:   {before.text}\n  checked: {after.text}")
    print(f"{len(found)} scenes of {given.count} would do")


if __name__ == "__main__":
    main()
