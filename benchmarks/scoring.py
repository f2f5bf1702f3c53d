"""What scoring CHAIR costs at full size: the truth of 123,287 images once, then 500 captions; and parity.

    python benchmarks/scoring.py --folder /tmp/coco     # makes 700 MB of annotations there

Annotations have COCO 2014's counts and shape (604,907 and 291,875 instances, five captions an image);
nothing in them is anybody's text. Parity: made captions are read with NLTK as it is; those that
differ are counted.
Each step runs as a process of its own, imports included. Ends with one JSON line.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

SPLITS = {"train": (82_783, 604_907), "val": (40_504, 291_875)}  # images, instances
CAPTIONS = 2000  # for parity
FRAMES = (
    "A {a} sitting on top of a {b} near a {c}.", "Two {a}s are standing next to a {b}.",
    "a {a} and a {b} on a {c}", "Several {a}s walking down a street with {b}s",
    "A close up of a {a} with a {b} in the background.", "There is a {a} that is next to the {b} and {c}.",
    "A man riding a {a} past some {b}s.", "The {a} is parked beside a white {b}, under the {c}.",
    "A young woman holding a {a} while skiing", "A kitchen with a {a}, {b} and {c} in it.",
)  # fmt: skip
OTHERS = ("tree", "wall", "street", "field", "room", "hill", "beach", "shirt", "sign", "building")


def sentence(rng: random.Random, words: list[str]) -> str:
    a, b, c = (rng.choice(words) if rng.random() < 0.6 else rng.choice(OTHERS) for _ in range(3))
    return rng.choice(FRAMES).format(a=a, b=b, c=c)


def make(folder: Path) -> None:
    from reverse.data.scenes.object_names import COCO_IDS
    from reverse.evaluation.reading.chair_words import _OBJECT_OF

    words = sorted(_OBJECT_OF)
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    categories = [{"supercategory": "x", "id": number, "name": name} for name, number in COCO_IDS.items()]
    numbers = list(COCO_IDS.values())
    outline = json.dumps([[round(rng.uniform(0, 640), 2) for _ in range(66)]])
    for split, (images, instances) in SPLITS.items():
        start = 1 if split == "train" else 300_000
        names = [
            {"id": i, "file_name": f"COCO_{split}2014_{i:012d}.jpg"} for i in range(start, start + images)
        ]
        with (folder / f"instances_{split}2014.json").open("w") as file:
            file.write(f'{{"info": {{}}, "images": {json.dumps(names)}, "licenses": [], "annotations": [')
            for n in range(instances):
                image, category = start + rng.randrange(images), rng.choice(numbers)
                file.write(
                    f'{", " if n else ""}{{"segmentation": {outline}, "area": 1234.5, "iscrowd": 0, '
                    f'"image_id": {image}, "bbox": [1.0, 2.0, 3.5, 4.5], '
                    f'"category_id": {category}, "id": {n}}}'
                )
            file.write(f'], "categories": {json.dumps(categories)}}}')
        said = [
            {"image_id": start + n % images, "id": n, "caption": sentence(rng, words)}
            for n in range(5 * images)
        ]
        (folder / f"captions_{split}2014.json").write_text(
            json.dumps({"info": {}, "images": names, "licenses": [], "annotations": said})
        )
    with (folder / "answers.jsonl").open("w") as file:
        for n in range(500):
            text = " ".join(sentence(rng, words) for _ in range(9))
            row = {"question_id": n, "image_id": f"COCO_val2014_{300_000 + n:012d}.jpg", "text": text}
            file.write(json.dumps(row) + "\n")


def parity(seed: int = 1) -> int:
    """How many of CAPTIONS made captions are read otherwise than by NLTK's own functions."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    from reverse.evaluation.reading import english_words
    from reverse.evaluation.reading.chair_words import _OBJECT_OF, _PAIRS, find_mentions

    english_words.prepare_words()
    rng = random.Random(seed)
    lemmatizer = WordNetLemmatizer()
    differ = 0
    for _ in range(CAPTIONS):
        text = " ".join(sentence(rng, sorted(_OBJECT_OF)) for _ in range(rng.choice((1, 1, 4))))
        words = []
        for word, tag in nltk.pos_tag(nltk.word_tokenize(text.lower())):
            words.append(lemmatizer.lemmatize(word, {"J": "a", "V": "v", "R": "r"}.get(tag[0], "n")))
        merged = []
        while words:
            word = words.pop(0)
            if words and f"{word} {words[0]}" in _PAIRS:
                word = _PAIRS[f"{word} {words.pop(0)}"]
            merged.append(word)
        kept = [w for w in merged if not (w == "seat" and "toilet" in merged)]
        wanted = [(w, _OBJECT_OF[w]) for w in kept if w in _OBJECT_OF], len(merged)
        differ += find_mentions(text) != wanted
    return differ


def step(folder: Path, cache: Path, *arguments: str) -> tuple[float, str]:
    """Seconds and output of `reverse score` on the folder."""
    command = [
        sys.executable,
        "-m",
        "reverse",
        "score",
        str(folder / "answers.jsonl"),
        "--truth",
        str(folder),
    ]
    began = time.perf_counter()
    environment = os.environ | {"REVERSE_CACHE": str(cache)}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON file to write as well.")
    settings = parser.parse_args()
    if not (settings.folder / "answers.jsonl").exists():
        make(settings.folder)
    from reverse.evaluation.reading.language_data import build_language_data, cache_root

    build_language_data()
    cache = settings.folder / "cache"
    cache.mkdir(exist_ok=True)
    for old in cache.glob("chair/*"):
        old.unlink()
    if not (cache / "language-1").exists():
        (cache / "language-1").symlink_to(cache_root().resolve() / "language-1")
    size = sum(path.stat().st_size for path in settings.folder.glob("*2014.json"))
    first, _ = step(settings.folder, cache, "--rounds", "0")
    again, _ = step(settings.folder, cache)
    cached = sum(path.stat().st_size for path in cache.glob("chair/*"))
    line = {
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "nltk": version("nltk"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/scoring.py --folder /tmp/coco",
        "annotations_mb": round(size / 1e6),
        "images": sum(images for images, _ in SPLITS.values()),
        "cache_mb": round(cached / 1e6, 2),
        "claims": {
            "chair_truth_seconds": round(first, 1),  # with the first score
            "chair_score_seconds_500": round(again, 2),  # 2,000 rounds of bootstrap included
            "chair_parity_captions": CAPTIONS,
            "chair_parity_differences": parity(),
        },
    }
    if settings.out:
        settings.out.write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
