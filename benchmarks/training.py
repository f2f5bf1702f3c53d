"""Training and evaluation on one and on two GPUs, and training's speed and memory against TRL's `SFTTrainer`.

    PYTHONPATH=. python benchmarks/training.py                        # all parts, on a machine with two GPUs
    PYTHONPATH=. python benchmarks/training.py --parts qwen3b  # or losses, scaling, eval, llava7b
    PYTHONPATH=. python benchmarks/training.py --parts parallel  # losses, scaling
    PYTHONPATH=. python benchmarks/training.py --tiny --out /tmp/results        # a rehearsal on a CPU

`losses`, `scaling` and `eval` compare two processes with one; `benchmarks/two_gpus.py` says how. `qwen3b`
(full) and `llava7b` (LoRA, three token rows, projector): random weights of the real sizes, bfloat16, gradient
checkpointing, one GPU, the same tensors in every step, each side in a process of its own; warm-up steps, then
timed ones. TRL gets an attention mask too, as its own collator gives it.

Writes `training_<device>.json` below `--out`, part by part; what a part finds missing is in it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shlex
import statistics
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
from two_gpus import PARALLEL_MODES, compare_eval, compare_losses, run_json

from reverse.models import family_of
from reverse.tokens import find_token_ids
from reverse.training.data.collator import Collator
from reverse.training.data.encoding import Encoder, Row, TrainingItem, Turn
from reverse.training.data.labels import IGNORE
from reverse.training.data.picture_encoding import PictureEncoder
from reverse.training.optim.trainable_weights import Tuning, select_trained
from reverse.training.sft import SFTConfig, train

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("losses", "scaling", "eval", "qwen3b", "llava7b")
TOGETHER = {"parallel": "losses,scaling"}
RATE = 2e-5
# samples a batch, the shortest and the longest row in ids, what is trained
SIZES = {
    "qwen3b": (4, 1536, 2048, Tuning(method="full")),
    "llava7b": (8, 1024, 2048, Tuning(method="lora")),
}


# ---------------------------------------------------------------- speed and memory


class Fixed(torch.utils.data.Dataset):
    """The same items again and again."""

    def __init__(self, items: list[TrainingItem], count: int):
        self.items, self.count = items, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TrainingItem:
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


def items_of(name: str, model: Any, processor: Any, tiny: bool) -> list[TrainingItem]:
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
        items.append(TrainingItem((Row(ids, labels),), tensors))
    return items


def run_side(name: str, side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side of one model in this process: seconds a step, memory, loss at the first step."""
    cuda = torch.cuda.is_available()
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if cuda:
        torch.cuda.set_device(rank)
    torch.manual_seed(0)
    built = "tiny" if options.tiny else name
    if options.tiny and name == "qwen3b":
        from experiments.tiny_models import build_tiny_qwen
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
    tokens = world * sum(len(row.ids) for item in items for row in item.rows)
    targets = world * sum(int((row.labels != IGNORE).sum()) for item in items for row in item.rows)
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_per_step": round(seconds, 4),
        "spread": round(
            (max(watch.seconds[options.warm :]) - min(watch.seconds[options.warm :])) / seconds, 3
        ),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else _resident(),
        "tokens_per_step": tokens,
        "targets_per_step": targets,
        "samples_per_step": world * len(items),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _resident() -> float:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def ours(
    model: Any,
    processor: Any,
    items: list[TrainingItem],
    tuning: Tuning,
    watch: Stopwatch,
    options: argparse.Namespace,
) -> None:
    """This library's training loop."""
    model = select_trained(model, processor, tuning)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = options.warm + options.steps
    cuda = torch.cuda.is_available()
    config = SFTConfig(
        output=str(Path(options.scratch) / "ours"), steps=steps, batch=len(items), lr=RATE, beta2=0.999,
        shuffle=False, precision="bfloat16" if cuda else "float32", pixels="bfloat16" if cuda else "float32",
        checkpoint_activations=True, loss_kernel=options.loss, log_steps=10_000, quiet=True,
        parallel=options.mode,
    )  # fmt: skip
    dataset = Fixed(items, steps * len(items) * world)  # every process sees the same items in every step
    train(model, processor, dataset, config, resume=False, callbacks=[watch])


def trl(
    model: Any,
    processor: Any,
    items: list[TrainingItem],
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

        ids = list(find_token_ids(processor.tokenizer))
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
        found[side] = run_json([*command, *(["--tiny"] if options.tiny else [])], {}, options.limit)
    if all("tokens_per_second" in found[side] for side in ("ours", "trl")):
        mine, other = found["ours"], found["trl"]
        found["tokens_over_trl"] = round(mine["tokens_per_second"] / other["tokens_per_second"], 4)
        found["memory_over_trl"] = round(mine["peak_gib"] / other["peak_gib"], 4)
    return found


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """Ids a second of both models on one GPU and on two, the same batch a GPU."""
    found: dict[str, Any] = {}
    for name, modes in PARALLEL_MODES.items():
        if name not in options.models:
            continue
        sides: dict[str, Any] = {}
        for mode in ("none", *modes):
            launch = (
                []
                if mode == "none"
                else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            )
            command = [
                sys.executable,
                *launch,
                str(Path(__file__).resolve()),
                "--side",
                "ours",
                "--mode",
                mode,
            ]
            command += ["--parts", name, "--scratch", options.scratch, "--steps", str(options.steps)]
            command += ["--warm", str(options.warm), "--loss", options.loss]
            env = {"OMP_NUM_THREADS": "4"}  # torchrun's default is another one than a single process has
            sides[mode] = run_json([*command, *(["--tiny"] if options.tiny else [])], env, options.limit)
        one = sides["none"].get("tokens_per_second")
        ratios = {
            mode: round(sides[mode]["tokens_per_second"] / one, 4)
            for mode in modes
            if one and "tokens_per_second" in sides[mode]
        }
        found[name] = {**sides, "ratios": ratios}
        if len(ratios) == len(modes):
            found[name]["two_over_one"] = min(ratios.values())
    return {"models": found}


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


def claims(result: dict[str, Any]) -> dict[str, float]:
    """What the parts show, the worse of the models or modes."""
    found = {}
    models = [result[m] for m in SIZES if "tokens_over_trl" in result.get(m, {})]
    if models:
        found["tokens_over_trl"] = min(model["tokens_over_trl"] for model in models)
        found["memory_over_trl"] = max(model["memory_over_trl"] for model in models)
    if result.get("losses", {}).get("difference"):
        found["parallel_loss_difference"] = max(result["losses"]["difference"].values())
    for part, claim in (("scaling", "two_over_one_tokens"), ("eval", "eval_two_over_one")):
        models = result.get(part, {}).get("models", {}).values()
        if models and all("two_over_one" in model for model in models):
            found[claim] = min(model["two_over_one"] for model in models)
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
    made = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/training.py", *options.arguments]),
        "devices": torch.cuda.device_count(),
        "versions": versions(),
    }
    if "models" in found:  # those that this call left out stay
        found["models"] = result.get(part, {}).get("models", {}) | found["models"]
    result |= {"device": device, part: made | found}
    result["claims"] = claims(result)
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
    parser.add_argument(
        "--models",
        nargs="+",
        default=["tiny-llava", *SIZES],
        help="of scaling and eval; others keep their results",
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.arguments = [word for word in sys.argv[1:] if not word.startswith(("/", options.out))]
    if options.side:
        found = run_side(options.parts, options.side, options)
        if not math.isfinite(found["tokens_per_second"]):
            raise ValueError(f"no steps were timed: {found}")
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(found), flush=True)
        return
    parts = ",".join(TOGETHER.get(part, part) for part in options.parts.split(",")).split(",")
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(
            f"unknown parts {', '.join(sorted(unknown))}: there are {', '.join([*PARTS, *TOGETHER])}"
        )
    for part in parts:
        with tempfile.TemporaryDirectory() as options.scratch:
            if part in ("losses", "scaling", "eval"):
                found = {"losses": compare_losses, "scaling": scale, "eval": compare_eval}[part](options)
            else:
                found = compare(part, options)
        path = write(options, part, found)
        print(json.dumps({part: found}))
    print(path)


if __name__ == "__main__":
    main()
