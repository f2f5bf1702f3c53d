"""Training: the same recipe on one and on several GPUs, and its speed and memory against TRL's `SFTTrainer`.

    python benchmarks/training.py                                  # all parts, on a machine with two GPUs
    python benchmarks/training.py --parts qwen3b                   # one of parallel, qwen3b, llava7b
    python benchmarks/training.py --tiny --out /tmp/results        # a rehearsal on a CPU

`parallel`: a tiny model in float32, one recipe; losses of ddp, zero2, zero3 and fsdp on two processes against
one process, full and with LoRA. `qwen3b` (full) and `llava7b` (LoRA, three token rows, projector): random
weights of the real sizes, bfloat16, gradient checkpointing, one GPU, the same tensors in every step, each
side in a process of its own; warm-up steps, then timed ones. TRL gets an attention mask too, as its own
collator gives it.

Writes `training_<device>.json` below `--out`, part by part; what a part finds missing is in it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from geometry import build, picture
from transformers import TrainerCallback

from reverse.models import family_of
from reverse.tokens import token_ids
from reverse.training.adapters import Tuning, select_trained
from reverse.training.collator import Collator
from reverse.training.encoding import Encoder, Item, Row, Turn
from reverse.training.labels import IGNORE
from reverse.training.pictures import PictureEncoder
from reverse.training.sft import SFTConfig, train

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("parallel", "qwen3b", "llava7b")
TOLERANCE = 1e-3  # of a loss, relative; float32 without TF32, sums in another order
RATE = 2e-5
# samples a batch, the shortest and the longest row in ids, what is trained
SIZES = {
    "qwen3b": (4, 1536, 2048, Tuning(method="full")),
    "llava7b": (8, 1024, 2048, Tuning(method="lora")),
}


# ---------------------------------------------------------------- speed and memory


class Fixed(torch.utils.data.Dataset):
    """The same items again and again."""

    def __init__(self, items: list[Item], count: int):
        self.items, self.count = items, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        return self.items[index % len(self.items)]


class Stopwatch(TrainerCallback):
    """Seconds of each step, waiting for the device; stops after the last without saving."""

    def __init__(self, steps: int):
        self.steps, self.seconds, self.began = steps, [], 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait()
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait()
        self.seconds.append(time.perf_counter() - self.began)
        if len(self.seconds) == self.steps:
            raise Done


class Done(Exception):
    """The timed steps are over."""


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def items_of(name: str, model: Any, processor: Any, tiny: bool) -> list[Item]:
    """Samples of one picture and a long answer of random ids, of lengths spread evenly."""
    count, shortest, longest, _ = SIZES[name]
    if tiny:
        count, shortest, longest = 2, 120, 200
    elif "longest_edge" in dict(processor.image_processor.size):
        size = {"shortest_edge": 512 * 28 * 28, "longest_edge": 1280 * 28 * 28}  # as the recipe has it
        processor.image_processor.size = type(processor.image_processor.size)(**size)
    side = 112 if tiny else 980
    pictures, encoder = PictureEncoder(processor), Encoder(processor)
    rng = np.random.default_rng(0)
    special = set(processor.tokenizer.added_tokens_decoder) | set(processor.tokenizer.all_special_ids)
    words = np.array([k for k in range(300) if k not in special])
    items = []
    for k, length in enumerate(np.linspace(shortest, longest, count).astype(int)):
        tensors, tokens = pictures(picture(k, side))
        short = encoder.row([Turn("Describe this image in every detail.", "It")], tokens)
        prompt = int((short.labels == IGNORE).sum())
        answer = rng.choice(words, max(8, length - prompt))
        ids = np.concatenate([short.ids[:prompt], answer])
        labels = np.concatenate([short.labels[:prompt], answer])
        items.append(Item((Row(ids, labels),), tensors))
    return items


def run_side(name: str, side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side of one model in this process: seconds a step, memory, loss at the first step."""
    cuda = torch.cuda.is_available()
    torch.manual_seed(0)
    built = "tiny" if options.tiny else name
    if options.tiny and name == "qwen3b":
        from reverse.models.tiny import build_tiny_qwen
        from reverse.tokens import add_tokens

        model, processor = build_tiny_qwen()
        add_tokens(model, processor)
    else:
        dtype = torch.bfloat16 if cuda else torch.float32
        model, processor = build(built, device="cuda" if cuda else "cpu", dtype=dtype)
    tuning = SIZES[name][3]
    items = items_of(name, model, processor, options.tiny)
    model.train()
    watch = Stopwatch(options.warm + options.steps)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with suppress(Done):
        (ours if side == "ours" else trl)(model, processor, items, tuning, watch, options)
    seconds = statistics.median(watch.seconds[options.warm :])
    tokens = sum(len(row.ids) for item in items for row in item.rows)
    targets = sum(int((row.labels != IGNORE).sum()) for item in items for row in item.rows)
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_per_step": round(seconds, 4),
        "spread": round(
            (max(watch.seconds[options.warm :]) - min(watch.seconds[options.warm :])) / seconds, 3
        ),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else _resident(),
        "tokens_per_step": tokens,
        "targets_per_step": targets,
        "samples_per_step": len(items),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _resident() -> float:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def ours(
    model: Any,
    processor: Any,
    items: list[Item],
    tuning: Tuning,
    watch: Stopwatch,
    options: argparse.Namespace,
) -> None:
    """This library's training loop."""
    model = select_trained(model, processor, tuning)
    steps = options.warm + options.steps
    cuda = torch.cuda.is_available()
    config = SFTConfig(
        output=str(Path(options.scratch) / "ours"), steps=steps, batch=len(items), lr=RATE, beta2=0.999,
        shuffle=False, precision="bfloat16" if cuda else "float32", pixels="bfloat16" if cuda else "float32",
        checkpoint_activations=True, loss_kernel=options.loss, log_steps=10_000, quiet=True,
    )  # fmt: skip
    dataset = Fixed(items, steps * len(items))
    train(model, processor, dataset, config, resume=False, callbacks=[watch])


def trl(
    model: Any,
    processor: Any,
    items: list[Item],
    tuning: Tuning,
    watch: Stopwatch,
    options: argparse.Namespace,
) -> None:
    """TRL's `SFTTrainer`: the same tensors, rates, optimizer and precision."""
    import datasets
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    cuda = torch.cuda.is_available()
    steps = options.warm + options.steps
    family = family_of(model)
    collate = Collator(processor, pixel_dtype=torch.bfloat16 if cuda else torch.float32)

    def batch(examples: list[Any]) -> dict[str, Any]:
        made = collate(items)
        del made["places"]
        lengths = torch.tensor([len(row.ids) for item in items for row in item.rows])
        mask = torch.arange(made["input_ids"].shape[1]) < lengths[:, None]
        return made | {"attention_mask": mask.long()}

    peft_config = None
    if tuning.method == "lora":
        from peft import LoraConfig

        ids = list(token_ids(processor.tokenizer))
        peft_config = LoraConfig(
            task_type="CAUSAL_LM", r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=tuning.dropout,
            target_modules=rf"{re.escape(family.language_model)}\..*_proj",
            modules_to_save=[family.projector],
            # Its loss cannot read a head whose rows peft trains (TRL 1.16): three rows fewer than ours.
            trainable_token_indices={"embed_tokens": ids},
        )  # fmt: skip
    else:
        family.vision_tower(model).requires_grad_(False)
        family.image_projector(model).requires_grad_(True)
    arguments = TrlConfig(
        output_dir=str(Path(options.scratch) / "trl"), max_steps=steps,
        per_device_train_batch_size=len(items), learning_rate=RATE, lr_scheduler_type="cosine",
        warmup_steps=1, optim="adamw_torch_fused", bf16=cuda, use_cpu=not cuda, gradient_checkpointing=True,
        max_length=None, save_strategy="no", logging_steps=10_000, report_to="none",
        remove_unused_columns=False, disable_tqdm=True, tf32=True if cuda else None,
        dataset_kwargs={"skip_prepare_dataset": True}, dataloader_pin_memory=cuda,
    )  # fmt: skip
    rows = datasets.Dataset.from_dict(
        {"input_ids": [[0]] * steps * len(items), "labels": [[0]] * steps * len(items)}
    )
    trainer = SFTTrainer(
        model=model, args=arguments, data_collator=batch, train_dataset=rows, processing_class=processor,
        peft_config=peft_config, callbacks=[watch],
    )  # fmt: skip
    trainer.train()


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides, each in a process of its own, and the ratios."""
    found: dict[str, Any] = {}
    for side in ("ours", "trl"):
        if side == "trl" and importlib.util.find_spec("trl") is None:
            found[side] = {"missing": "trl is not installed"}
            continue
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--side",
            side,
            "--parts",
            name,
            "--scratch",
            options.scratch,
        ]
        command += ["--steps", str(options.steps), "--warm", str(options.warm), "--loss", options.loss]
        found[side] = _run([*command, *(["--tiny"] if options.tiny else [])], {}, options.limit)
    if all("tokens_per_second" in found[side] for side in ("ours", "trl")):
        mine, other = found["ours"], found["trl"]
        found["tokens_over_trl"] = round(mine["tokens_per_second"] / other["tokens_per_second"], 4)
        found["memory_over_trl"] = round(mine["peak_gib"] / other["peak_gib"], 4)
    return found


def _run(command: list[str], env: dict[str, str], limit: float) -> dict[str, Any]:
    """What a process printed as its last line of JSON; or why there is none."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run(
            command, env=os.environ | path | env, capture_output=True, text=True, timeout=limit, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {limit:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return {"failed": (done.stderr or done.stdout)[-1500:], "code": done.returncode}


# ---------------------------------------------------------------- one recipe, several processes


def parallel(options: argparse.Namespace) -> dict[str, Any]:
    """Losses of one recipe in every mode, against one process."""
    from reverse.data.scenes import write_scenes
    from reverse.models.tiny import build_tiny_llava
    from reverse.tokens import add_tokens

    folder = Path(options.scratch)
    write_scenes(folder / "scenes", "train", 12, 0)
    records = json.loads((folder / "scenes/instruct.json").read_text(encoding="utf-8"))
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    # Texts without a picture in between: processes that share weights out would wait for each other for ever.
    for place in range(0, 40, 2):
        records.insert(place, {"id": f"text {place}", "conversations": said})
    (folder / "scenes/instruct.json").write_text(json.dumps(records), encoding="utf-8")
    model, processor = build_tiny_llava(seed=0)
    add_tokens(model, processor)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    recipe = {
        "model": str(folder / "base"),
        "output": "",
        "data": {
            "records": str(folder / "scenes/instruct.json"), "images": str(folder / "scenes"), "workers": 0,
        },
        "tune": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "optim": {"lr": 1e-3, "steps": 6, "global_batch": 8, "batch": 2, "weight_decay": 0.1},
        "compute": {"precision": "float32", "weights": "float32", "save_dtype": None},
        "log": {"steps": 1, "save_steps": 0},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    modes = ["none", "ddp", "fsdp", "zero3"]
    plan = [("full", mode) for mode in modes] + [
        ("lora", mode) for mode in ("none", "fsdp", "zero3", "zero2")
    ]
    losses: dict[str, Any] = {}
    for method, mode in plan:
        losses[f"{method}_{mode}"] = _losses(method, mode, path, folder, options)
    found: dict[str, Any] = {"tolerance": TOLERANCE, "losses": losses, "difference": {}}
    for name, got in losses.items():
        single = losses[f"{name.split('_')[0]}_none"]
        if isinstance(got, list) and isinstance(single, list) and not name.endswith("_none"):
            apart = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(got, single, strict=True))
            found["difference"][name] = apart
    found["all_within_tolerance"] = all(apart <= TOLERANCE for apart in found["difference"].values())
    found["compared"] = sorted(found["difference"])
    return found


def _losses(method: str, mode: str, recipe: Path, folder: Path, options: argparse.Namespace) -> Any:
    if mode.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return {"missing": "deepspeed is not installed"}
    if mode in ("fsdp", "zero2", "zero3") and torch.cuda.device_count() < 2:
        return {"missing": "needs two GPUs"}
    output = folder / f"{method}_{mode}"
    launch = (
        [] if mode == "none" else ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    )
    command = [sys.executable, "-m", *launch, "reverse", "train", str(recipe), "--quiet"]
    for setting in (f"output={output}", f"tune.method={method}", f"compute.parallel={mode}"):
        command += ["--set", setting]
    env = {"NVIDIA_TF32_OVERRIDE": "0", "REVERSE_DEBUG": "1", "OMP_NUM_THREADS": "1"}
    outcome = _run(command, env, options.limit)
    manifest = output / "training.json"
    if not manifest.is_file():
        return outcome
    return [loss for _, loss in json.loads(manifest.read_text(encoding="utf-8"))["losses"]]


# ---------------------------------------------------------------- results


def versions() -> dict[str, str]:
    """Of what matters here."""
    names = ("torch", "transformers", "peft", "accelerate", "trl", "deepspeed", "liger-kernel")
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(options: argparse.Namespace, part: str, found: dict[str, Any]) -> Path:
    """Put one part into the file, and the claims that follow from all of them."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    name = "_".join(
        filter(None, ["training", re.sub(r"\W+", "_", device.lower()), "tiny" if options.tiny else ""])
    )
    path = Path(options.out) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    result |= {"device": device, "devices": torch.cuda.device_count(), "versions": versions(), part: found}
    models = [result[m] for m in SIZES if "tokens_over_trl" in result.get(m, {})]
    if models:
        result["claims"] = {
            "tokens_over_trl": min(model["tokens_over_trl"] for model in models),  # the worse of the models
            "memory_over_trl": max(model["memory_over_trl"] for model in models),
        }
    written = path.with_suffix(".partial")
    written.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    written.rename(path)
    return path


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results"))
    parser.add_argument("--tiny", action="store_true", help="small models, to see whether it runs")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--warm", type=int, default=3, help="steps before them")
    parser.add_argument("--loss", default="auto", help="loss.kernel of ours")
    parser.add_argument("--limit", type=float, default=140, help="seconds a process may take")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        found = run_side(options.parts, options.side, options)
        if not math.isfinite(found["tokens_per_second"]):
            raise ValueError(f"no steps were timed: {found}")
        print(json.dumps(found), flush=True)
        return
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory() as options.scratch:
            found = parallel(options) if part == "parallel" else compare(part, options)
        path = write(options, part, found)
        print(json.dumps({part: found}))
    print(path)


if __name__ == "__main__":
    main()
