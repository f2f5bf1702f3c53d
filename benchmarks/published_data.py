"""Read a generated file of the published set's size and shape: seconds, records a second, peak memory.

    python benchmarks/published_data.py --records 1300000 --folder /tmp/published      # 2.1 GB, twice

The records are 1.3 million, of 5.2 questions and 1.6 kB in the mean, from the published sources in their
shares; nothing in them is anybody's text. Each step runs as a process of its own, as a user would run it, so
that the peak (of the resident set, file pages that are mapped included) is its own. Ends with one JSON line.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path

# Records of each source, in thousands (arXiv 2504.13169, Appendix B), and the folder of its pictures.
SOURCES = {
    "coco/train2017": 719, "vg/VG_100K": 173, "ocr_vqa/images": 160, "gqa/images": 144, "": 80,
    "textvqa/train_images": 42,
}  # fmt: skip
THINGS = [
    "dog",
    "cat",
    "cup",
    "bus",
    "bench",
    "horse",
    "kite",
    "train",
    "boat",
    "clock",
    "sofa",
    "banana",
    "café",
    "鳥",
    "😀",
]
PLACES = ("on a beach", "near the window", "in a field", "under the table", "beside a “red” car", "at night")
QUESTIONS = ("What is shown here?", "How many are there?", "Is there a {}?", "Describe the {} in detail.")


def turn_pairs(rng: random.Random, count: int = 4000) -> list[tuple[str, str]]:
    """Questions (as text) and the JSON of both turns but for the question's value."""
    pairs = []
    for _ in range(count):
        thing, other = rng.sample(THINGS, 2)
        spans = [
            f"There are <SPAN>{rng.randint(2, 9)} {rng.choice(THINGS)}s</CN> <SPAN>{rng.choice(PLACES)}</CN>."
            for _ in range(rng.randint(1, 6))
        ]
        negative = rng.random() < 0.43
        if negative:
            spans[-1] = f"There are <SPAN>two {other}s</UN>"
        said = {
            "from": "gpt",
            "value": " ".join(spans),
            "A_type": rng.choice(["general_answer", "general_answer", "yes/no", "number"]),
            "hint": None if negative or rng.random() < 0.3 else f"a {other}",
        }
        pairs.append((rng.choice(QUESTIONS).format(thing), json.dumps(said, ensure_ascii=rng.random() < 0.5)))
    return pairs


def generate(path: Path, records: int, seed: int = 0) -> None:
    """Write `records` of them as one JSON array, in constant memory."""
    rng = random.Random(seed)
    pairs = turn_pairs(rng)
    folders, weights = list(SOURCES), list(accumulate(SOURCES.values()))
    sizes, shares = range(1, 12), list(accumulate([6, 10, 14, 16, 16, 13, 10, 6, 4, 3, 2]))
    with path.open("w", encoding="utf-8") as stream:
        for number in range(records):
            folder = rng.choices(folders, cum_weights=weights)[0]
            turns = []
            for k, (question, said) in enumerate(
                rng.choices(pairs, k=rng.choices(sizes, cum_weights=shares)[0])
            ):
                asked = f"<image>\\n{question}" if folder and not k else question
                turns.append(f'{{"from": "human", "value": "{asked}"}}, {said}')
            image = f'"image": "{folder}/{number % 330_000:012d}.jpg", ' if folder else '"model": "", '
            name = number if number % 7 == 0 else f'"{number:012d}"'
            body = f'{{"id": {name}, {image}"conversations": [{", ".join(turns)}]}}'
            stream.write(f"{', ' if number else '['}{body}")
        stream.write("]")


def import_(folder: Path) -> int:
    from reverse.data.records.importer import import_records

    return import_records(folder / "reverse_ft.json", folder / "imported")["records"]


def check(folder: Path) -> int:
    from reverse.data.records.set_check import check_set

    return check_set(folder / "imported").counts["records"]


def check_json(folder: Path) -> int:
    from reverse.data.records.set_check import check_set

    return check_set(folder / "reverse_ft.json").counts["records"]


def subsample(folder: Path) -> int:
    from reverse.data.records.published_set import open_records
    from reverse.data.records.subsets import subsample

    n = min(100_000, len(open_records(folder / "imported")))
    return subsample(folder / "imported", folder / "part.json", n)["n"]


def read_20000_at_random(folder: Path) -> int:
    from reverse.data.records.published_set import open_records

    records = open_records(folder / "imported")
    rng = random.Random(0)
    for _ in range(20_000):
        records[rng.randrange(len(records))]
    return 20_000


STEPS = {f.__name__: f for f in (import_, check, check_json, subsample, read_20000_at_random)}


def own_memory() -> int:
    """Bytes that are this process's own now: without pages of mapped files, which the system takes back."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def measure(step: str, folder: Path) -> None:
    """Run one step in this process and say what it cost."""
    began, cpu = time.perf_counter(), time.process_time()
    records = STEPS[step](folder)
    seconds = time.perf_counter() - began
    figures = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "records_a_second": round(records / seconds),
        "own_mb": round(own_memory() / 2**20),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),  # of kB, on Linux
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, default=1_300_000)
    parser.add_argument("--folder", type=Path, required=True, help="new; removed at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        measure(args.step, args.folder)
        return
    args.folder.mkdir(parents=True)
    try:
        generate(args.folder / "reverse_ft.json", args.records, args.seed)
        size = (args.folder / "reverse_ft.json").stat().st_size
        print(f"{args.records:,} records, {size / 1e9:.2f} GB, {platform.processor() or platform.machine()}")
        figures = {}
        for step in args.steps:
            command = [sys.executable, __file__, "--folder", str(args.folder), "--step", step]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures[step.rstrip("_")] = json.loads(said)
            print(f"{step.rstrip('_'):<22}{said.strip()}", flush=True)
        print(json.dumps({"records": args.records, "bytes": size, "cores": os.cpu_count()} | figures))
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
