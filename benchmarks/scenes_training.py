"""What tagging gains on scenes: both families, several seeds, on all GPUs of a machine, in a given time.

    python benchmarks/scenes_training.py --out OUT --minutes 9 --variants qwen:hints_0
    python benchmarks/scenes_training.py --out OUT --minutes 7 --bases-only         # in three calls:
    python benchmarks/scenes_training.py --out OUT --minutes 7 --bases OUT --train-only
    python benchmarks/scenes_training.py --out OUT --models OUT --results FILE.json
    python benchmarks/scenes_training.py --merge OUT/pieces.jsonl OUT2/pieces.jsonl --results FILE.json
    python benchmarks/scenes_training.py --out OUT --minutes 1 --tiny                # rehearsal on a CPU

Scenes are drawn once by all processors into shared memory; every training is a process, several a GPU, and
reads them from there. A family has one base, as a published base is one; each seed's tagged model and its
plain twin start from it and go in step (`experiments.training_grid`). A variant is an ablation: a tagged
model of
the first seed. Then every contender answers every split (`scenes_measuring.py`), here or elsewhere.

`OUT` holds at any moment what is finished: `pieces.jsonl` (a line for each contender, run and split; none is
measured twice), `base-*.tar.xz` and `RUN.tar.xz` (tagged model and twin of each), `scenes_training.json`
(merged), `best.json` (of each family the seed that val likes best, and its threshold), `log.txt`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from scenes_measuring import Measuring, Pieces, Run, end_with_parent, read_pieces, write_results

from experiments.scene_models import SECOND_STAGE, SceneRecipe
from experiments.training_grid import (
    VARIANTS,
    Cell,
    prepare_processors,
    row_settings_of,
    train_base,
    train_leader,
    train_twin,
)
from reverse.files.atomic_write import write_json

WEIGHT = {"llava": 1.0, "qwen": 0.7}  # of a training, on the GPU
SHARD = 2048  # pictures
STAGGER = 45.0  # seconds that the first training of a family is ahead: the others find its step compiled
TINY = {
    "vision_layers": 1, "vision_hidden": 32, "vision_inner": 32, "vision_heads": 2, "text_layers": 1,
    "text_hidden": 32, "text_inner": 32, "text_heads": 2, "patch": 14, "tokenizer_scenes": 100,
    "base_batch": 8, "tags_batch": 8,
}  # fmt: skip


def main() -> None:
    options = _options()
    command = shlex.join(["python", "benchmarks/scenes_training.py", *sys.argv[1:]])
    if options.merge:
        write_results(Path(options.results), read_pieces(options.merge), command, options.gpus)
        return
    grid = Grid(options)
    if options.models:
        grid.measure_packed()
        write_results(Path(options.results), grid.pieces.lines, command, options.gpus)
        return
    grid.run(command)


class Grid:
    """One call of this program."""

    def __init__(self, options: argparse.Namespace):
        import torch

        self.options = options
        self.began = time.time()
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        if options.work:
            Path(options.work).mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="scenes-", dir=options.work or _roomiest()))
        self.packs = Path(options.packs or self.work / "packs")
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "3")  # of each training; there are many
        self.devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
        self.spawn = multiprocessing.get_context("spawn")
        self.lock = threading.Lock()
        self.pieces = Pieces(self.out / "pieces.jsonl")
        self.measuring = Measuring(self.pieces, self.devices, options, self.say)
        self.best: dict[str, tuple[tuple[float, float], int, float]] = {}
        self.children: list[Any] = []
        total = 60 * options.minutes
        self.end = self.began + total - (2 if options.tiny else 4)
        share = 0.5 if options.tiny else options.evaluation
        no_measuring = options.train_only or options.bases_only
        self.until = self.end - 14 if no_measuring else self.began + total * (1 - share)
        part = 1.0 if options.bases_only else options.base
        self.base_until = self.began + part * (self.until - self.began)
        given: dict[str, Any] = {"base_batch": 256, "tags_batch": 160, "tags_lr": 8e-4}
        given |= {"hinted_prejudice": options.hinted_prejudice, "compile": self.devices != ["cpu"]}
        given |= TINY if options.tiny else {}
        self.recipes = {family: SceneRecipe(family=family, **given) for family in options.families}
        if options.tiny:
            self.shard, self.counts = 64, (2, 2)
        else:
            self.shard, self.counts = SHARD, (options.base_shards, options.second_shards)

    def say(self, line: str) -> None:
        line = f"{time.time() - self.began:6.1f} s  {line}"
        print(line, flush=True)
        with self.lock, (self.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    # ------------------------------------------------------------------ the plan
    def run(self, command: str) -> None:
        self.say(f"{len(self.devices)} devices, {os.cpu_count()} processors, in {self.work}")
        try:
            if self.options.bases:
                for path in Path(self.options.bases).glob("base-*.tar.xz"):
                    _unpack(path, self.work)
            self._prepare()
            self._train_and_measure(self._cells())
        finally:
            self._finish(command)

    def _cells(self) -> list[Cell]:
        options, cells, loads = self.options, [], dict.fromkeys(self.devices, 0.0)
        places = [(f, s, "main") for f in options.families for s in options.seeds]
        places += [(f, options.seeds[0], v) for f, v in options.variants]
        places.sort(key=lambda place: -WEIGHT[place[0]])
        for family, seed, variant in places:
            device = min(loads, key=lambda d: loads[d])
            loads[device] += WEIGHT[family]
            cells.append(
                Cell(
                    family, seed, variant, str(self.work), self._shards(seed), device, device,
                    self.base_until, self.until, self.recipes[family], options.seeds[0],
                    twin=variant == "main", jitter=options.jitter, steps=options.steps,
                )
            )  # fmt: skip
        for k, cell in enumerate(cells):
            if cell.twin:
                device = min(loads, key=lambda d: loads[d])
                loads[device] += 0.6 * WEIGHT[cell.family]
                cells[k] = replace(cell, twin_device=device)
        return cells

    def _shards(self, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Seeds meet the same pictures, each beginning at a third of its own."""
        from experiments.scene_packs import shard_path

        orders = []
        for stage, count in zip(("base", "second"), self.counts, strict=True):
            paths = [str(shard_path(self.packs / stage, k)) for k in range(count)]
            at = seed % 3 * count // 3 if stage == "second" else 0
            orders.append(tuple(paths[at:] + paths[:at]))
        return orders[0], orders[1]

    # ------------------------------------------------------------------ scenes
    def _prepare(self) -> None:
        prepare_processors(self.work, self.recipes)
        self.say("processors written")
        variants = {f: ["main", *(v for g, v in self.options.variants if g == f)] for f in self.recipes}
        base: dict[str, Any] = {}
        second: dict[str, Any] = {}
        for family, recipe in self.recipes.items():
            found = row_settings_of(self.work, variants[family], {family: recipe})
            base |= found[0]
            second |= found[1]
        folders = [self.packs / stage for stage in ("base", "second")]
        there = all((self.work / f"base-{f}-{self.options.seeds[0]}").is_dir() for f in self.recipes)
        bases = [(str(folders[0]), k, base, self.shard, 0) for k in range(0 if there else self.counts[0])]
        order = _interleaved(self.counts[1], 3)
        seconds = [(str(folders[1]), k, second, self.shard, SECOND_STAGE) for k in order]
        seconds = [] if self.options.bases_only else seconds
        # The first ones of the second stage early: its trainings compile while the bases are trained.
        jobs = [*bases[:48], *seconds[:3], *bases[48:], *seconds[3:]]
        self.renderers = ProcessPoolExecutor(
            self.options.renderers, mp_context=self.spawn, initializer=_renice
        )
        for job in jobs:
            self.renderers.submit(_draw, *job).add_done_callback(self._drawn)
        self.left = len(jobs)

    def _drawn(self, future: Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        with self.lock:
            self.left -= 1
            left = self.left
        if error is not None:
            self.say(f"drawing failed: {type(error).__name__}: {error}")
        elif left == 0:
            self.say("all scenes are drawn")
            self.renderers.shutdown(wait=False)

    # ------------------------------------------------------------------ training
    def _train_and_measure(self, cells: list[Cell]) -> None:
        bases = {cell.base: cell for cell in reversed(cells)}
        trainers = []
        for k, (path, cell) in enumerate(sorted(bases.items())):
            owner = replace(cell, device=self.devices[k % len(self.devices)])
            if not path.is_dir():
                trainers.append(threading.Thread(target=self._base, args=(owner,), daemon=True))
                trainers[-1].start()
        if self.options.bases_only:
            for trainer in trainers:
                trainer.join(max(0.0, self.end - time.time()))
            return
        if not self.options.train_only:
            warm = threading.Timer(max(0.0, self.until - 25 - time.time()), self.measuring.warm)
            warm.daemon = True
            warm.start()
        first = {cell.family: cell.name for cell in reversed(cells)}
        threads = []
        for cell in cells:
            wait = 0.0 if cell.name == first[cell.family] or self.devices == ["cpu"] else STAGGER
            threads.append(threading.Thread(target=self._guarded, args=(cell, wait), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(max(0.0, self.end - time.time()))
        late = sum(thread.is_alive() for thread in threads)
        if late:
            self.say(f"time is up: {late} runs are not whole")

    def _base(self, cell: Cell) -> None:
        process = self._start(f"base of {cell.family}", train_base, cell)
        process.join()
        if process.exitcode != 0:
            self.say(f"training the base of {cell.family} failed, see above")
            return
        self._remember(cell.base.name, "base", cell.base)
        self.say(f"{cell.base.name} trained")
        _pack(cell.base, self.out / f"{cell.base.name}.tar.xz")

    def _guarded(self, cell: Cell, wait: float) -> None:
        time.sleep(wait)
        try:
            self._one(cell)
        except Exception as error:
            self.say(f"{cell.name} failed: {type(error).__name__}: {error}")

    def _one(self, cell: Cell) -> None:
        barrier = self.spawn.Barrier(2) if cell.twin else None
        stop = self.spawn.Value("b", 0)
        jobs = [("leader", train_leader)] + ([("twin", train_twin)] if cell.twin else [])
        processes = [self._start(f"{cell.name} {role}", job, cell, barrier, stop) for role, job in jobs]
        for process in processes:
            process.join()
        failed = [process.name for process in processes if process.exitcode != 0]
        if failed:
            raise RuntimeError(f"training failed: {', '.join(failed)}, see above")
        for stage in ("tags", "twin"):
            if cell.folder(stage).exists():
                self._remember(cell.name, stage, cell.folder(stage))
        self.say(f"{cell.name} trained")
        _pack(cell.folder("tags").parent, self.out / f"{cell.name}.tar.xz")
        run = Run(cell.family, cell.seed, cell.variant, cell.folder("tags").parent)
        if not self.options.train_only:
            self._measure(run)

    def _start(self, name: str, job: Any, *arguments: Any) -> Any:
        """A process whose error is written into the log."""
        process = self.spawn.Process(
            target=_logged, args=(name, str(self.out / "log.txt"), job, *arguments), name=name
        )
        with self.lock:
            self.children.append(process)
        process.start()
        return process

    def _remember(self, name: str, stage: str, folder: Path) -> None:
        manifest = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        names = ("parameters", "steps", "items", "rows", "seconds", "steps_per_second", "final_loss")
        kept = {name: manifest[name] for name in (*names, "device", "versions")}
        self.pieces.append({"kind": "training", "run": name, "stage": stage, **kept})

    # ------------------------------------------------------------------ measuring
    def measure_packed(self) -> None:
        """Measure every run that was packed in the folder `--models`."""
        packed = sorted(Path(self.options.models).glob("[!b]*-*-*.tar.xz"))  # runs, not their bases
        if not packed:
            raise FileNotFoundError(f"no *.tar.xz in {self.options.models}: name the --out of a --train-only")
        runs = []
        for path in packed:
            _unpack(path, self.work)
            family, seed, variant = path.name.removesuffix(".tar.xz").split("-")
            runs.append(Run(family, int(seed), variant, self.work / f"{family}-{seed}-{variant}"))
        # Two at a time: the processes that measure have no gaps, and a run is whole early.
        waiting = sorted(runs, key=lambda run: (run.variant != "main", run.family, run.seed))
        workers = [threading.Thread(target=self._measure_all, args=(waiting,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        shutil.rmtree(self.work, ignore_errors=True)

    def _measure_all(self, waiting: list[Run]) -> None:
        while True:
            with self.lock:
                if not waiting:
                    return
                run = waiting.pop(0)
            self._measure(run)

    def _measure(self, run: Run) -> None:
        chosen = self.measuring.measure(run)["default"]
        assert chosen is not None
        if run.variant != "main":
            return
        mark = self.measuring.mark(run, chosen)
        with self.lock:
            if run.family not in self.best or mark < self.best[run.family][0]:
                self.best[run.family] = (mark, run.seed, chosen)
            best = {f: {"seed": seed, "threshold": t} for f, (_, seed, t) in self.best.items()}
            write_json(self.out / "best.json", best)

    def _finish(self, command: str) -> None:
        for pool in (getattr(self, "renderers", None), self.measuring.pool):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list((getattr(pool, "_processes", None) or {}).values()):
                    process.terminate()
        for process in self.children:
            if process.is_alive():
                process.terminate()
        if not (self.options.train_only or self.options.bases_only):
            write_results(self.out / "scenes_training.json", self.pieces.lines, command, self.options.gpus)
        shutil.rmtree(self.work, ignore_errors=True)
        self.say("finished")
        sys.stdout.flush()
        os._exit(0)  # threads may still wait for processes that are gone


# ---------------------------------------------------------------------- in other processes
def _draw(folder: str, number: int, kinds: Any, count: int, start: int) -> str:
    from experiments.scene_packs import write_shard

    return str(write_shard(folder, number, kinds, count=count, start=start))


def _renice() -> None:
    import torch

    end_with_parent()
    os.nice(5)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _logged(name: str, log: str, job: Any, *arguments: Any) -> None:
    """A job, with its error in the log."""
    import traceback

    end_with_parent()
    try:
        job(*arguments)
    except BaseException:
        text = f"{name}\n{traceback.format_exc()}"
        print(text, flush=True)
        with open(log, "a", encoding="utf-8") as file:
            file.write(text)
        for argument in arguments:
            if hasattr(argument, "abort"):  # a barrier that another process would wait at
                argument.abort()
        raise SystemExit(1) from None


def _pack(folder: Path, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    with tarfile.open(temporary, "w:xz", preset=2) as file:
        file.add(folder, arcname=folder.name)
    temporary.replace(path)


def _unpack(path: Path, folder: Path) -> None:
    with tarfile.open(path) as file:
        file.extractall(folder, filter="data")


def _interleaved(count: int, ways: int) -> list[int]:
    """0, a third, two thirds, 1, …: seeds that begin at different places all find their first shards."""
    starts = [k * count // ways for k in range(ways)]
    seen = dict.fromkeys((start + step) % count for step in range(count) for start in starts)
    return list(seen)


def _roomiest() -> str | None:
    """Shared memory where 80 GB are free in it, else wherever temporary files go."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 80e9 else None


def _variant(word: str) -> tuple[str, str]:
    family, _, variant = word.partition(":")
    if family not in WEIGHT or variant not in VARIANTS or variant == "main":
        names = ", ".join(sorted(set(VARIANTS) - {"main"}))
        raise argparse.ArgumentTypeError(f"{word!r} is not FAMILY:VARIANT: llava or qwen, and one of {names}")
    return family, variant


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--out", help="folder for what comes back")
    add("--minutes", type=float, default=9.3, help="in total (default: %(default)s)")
    add("--base", type=float, default=0.45, help="when the bases are done, as a share of training")
    add("--evaluation", type=float, default=0.27, help="share of all for measuring")
    add("--families", nargs="+", default=["llava", "qwen"], choices=["llava", "qwen"])
    add(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the second stage; the first is the base's"
    )
    add("--variants", nargs="*", type=_variant, default=[], help="ablations, FAMILY:VARIANT each")
    add("--bases-only", action="store_true", help="train and pack the bases and nothing else")
    add("--bases", help="a folder of packed bases: train none where it has one")
    add("--train-only", action="store_true", help="pack the models and measure nothing")
    add("--models", help="train nothing: measure the runs packed in this folder")
    add("--hinted-prejudice", type=float, default=0.0, help="see SceneDataset")
    add("--jitter", type=float, default=0.5, help="share of pictures, in training")
    add("--count", type=int, default=500, help="scenes of test and of shift")
    add("--val-count", type=int, default=250, help="scenes that thresholds are chosen on")
    add("--base-shards", type=int, default=384, help=f"of {SHARD} pictures")
    add("--second-shards", type=int, default=192)
    add("--renderers", type=int, default=0, help="processes that draw (default: 0.7 a processor)")
    add("--judges", type=int, default=0, help="processes that measure (default: 6 a GPU; CPU: one a core)")
    add("--max-sequences", type=int, default=0, help="answers side by side (default: 128; CPU: 16)")
    add("--steps", type=int, default=0, help="of each stage, instead of a time")
    add("--work", help="folder for what may be lost (default: shared memory)")
    add("--packs", help="folder of drawn scenes, kept: later calls with the same variants find them drawn")
    add("--tiny", action="store_true", help="a rehearsal: models that learn nothing")
    add("--merge", nargs="+", help="pieces.jsonl of several calls: merge and do nothing else")
    add("--results", help="with --merge and --models: the file of results")
    add("--gpus", default="", help="how many GPUs, for the record, such as '2 x'")
    options = parser.parse_args()
    if not options.merge and not options.out:
        parser.error("--out is missing: name a folder for what comes back")
    if (options.merge or options.models) and not options.results:
        parser.error("--results is missing: name the file that the figures go to")
    import torch

    gpus = torch.cuda.device_count()
    processors = os.cpu_count() or 1
    options.renderers = options.renderers or max(1, int(0.7 * processors) if gpus else 1)
    options.judges = options.judges or (6 * gpus or processors)
    options.max_sequences = options.max_sequences or (128 if gpus else 16)
    return options


if __name__ == "__main__":
    main()
