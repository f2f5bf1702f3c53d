"""Train a value head on the values of the steps of drafts (TSST's tree values).

    head, report = train_value_head(model, processor, read_drafts("drafts.jsonl"), "pictures", ValueConfig())
    save_value_head(head, "out/model", notes=report)

The values are those of `reverse.data.drafts.tree_values`: recorded ones, or those of the tree of all judged
answers. A frozen backbone reads every answer once, and the head is trained on its hidden states. With
`train_backbone` the parameters of the model that require gradients (LoRA, say) are trained with the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.data.drafts.tree_values import find_prefix_values, find_step_ends
from reverse.data.pictures.opening import open_image, read_image_size, resolve_image
from reverse.errors import DataError, RequestError
from reverse.models.unwrapping import input_device
from reverse.models.value_head import ValueHead, hidden_size_of
from reverse.training.data.collator import Collator
from reverse.training.data.encoding import Encoder, Row, TrainingItem, Turn
from reverse.training.data.picture_encoding import PictureEncoder, join_pictures
from reverse.training.views.view_rows import write_prefix

__all__ = ["ValueChain", "ValueConfig", "find_chains_with_values", "train_value_head"]


@dataclass(frozen=True)
class ValueConfig:
    """Settings of the training of a value head."""

    epochs: int = 20  # passes over the steps
    lr: float = 1e-3  # of the head
    train_backbone: bool = False  # parameters of the model that require gradients are trained too (LoRA)
    backbone_lr: float = 1e-4  # of these
    batch: int = 8  # answers that the backbone reads at once
    head_batch: int = 512  # steps at once, where the backbone is frozen
    weight_decay: float = 0.0
    held_out: float = 0.1  # share of the questions that are measured and not trained on
    tagged: bool = True  # answers carry the three tokens, as a tagged model writes them
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "head_batch"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, got {getattr(self, name)!r:.80}")
        for name in ("lr", "backbone_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise RequestError(f"{name} must be a positive number, got {getattr(self, name)!r:.80}")
        if not 0 <= self.held_out < 1:
            raise RequestError(f"held_out must lie in [0, 1), got {self.held_out!r:.80}: try 0.1")


class ValueChain(NamedTuple):
    """An answer, and the values of the text up to some of its characters: (characters, value)."""

    text: str
    ends: tuple[tuple[int, float], ...]


class _Sample(NamedTuple):
    """An encoded answer: `places` (steps,) of the last ids of its steps in the row, `values` (steps,)."""

    row: Row
    pictures: tuple[Path, ...]
    places: Tensor
    values: Tensor
    is_held_out: bool


def find_chains_with_values(record: DraftRecord, *, tagged: bool = True) -> list[ValueChain]:
    """Return the answers of a record with the values of their steps; a shared beginning counts once."""
    values = {each.text.strip(): each.value for each in find_prefix_values(record)}
    seen: set[str] = set()
    chains = []
    for draft in record.drafts:
        ends: dict[int, float] = {}
        for end in sorted({*find_step_ends(draft), *(segment.end for segment in draft.segments)}):
            prefix = draft.text[:end].strip()
            if prefix in values and prefix not in seen and not (tagged and _is_inside_phrase(draft, end)):
                seen.add(prefix)
                ends[len(write_prefix(draft, len(draft.text[:end].rstrip()), tagged=tagged))] = values[prefix]
        if ends:
            text = write_prefix(draft, len(draft.text.rstrip()), tagged=tagged)
            chains.append(ValueChain(text, tuple(ends.items())))
    return chains


def _is_inside_phrase(draft: RecordedDraft, end: int) -> bool:
    """Whether a phrase is still open at a character, or only blanks of it are missing."""
    end = len(draft.text[:end].rstrip())
    return any(each.kind == "phrase" and each.start < end < each.end for each in draft.segments)


def train_value_head(
    model: Any,
    processor: Any,
    records: Iterable[DraftRecord],
    images: str | Path,
    config: ValueConfig | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> tuple[ValueHead, dict[str, Any]]:
    """Train a head for `model`, and return it with a report (JSON).

    Args:
        model: with or without peft; unchanged, unless `config.train_backbone` is set.
        processor: of the model.
        records: drafts with verdicts or values.
        images: folder that their pictures are relative to.
        progress: called with how many answers were read by the backbone, and how many there are to read.

    Raises:
        DataError: no step of the records has a value, or a picture is missing.
    """
    config = config or ValueConfig()
    samples = _encode(processor, records, Path(images), config)
    trained = [each for each in samples if not each.is_held_out]
    held_out = [each for each in samples if each.is_held_out]
    if not trained:
        raise DataError(
            "no answer has a value to train on: the drafts need verdicts, with a right answer to each "
            "question, or segments with values"
        )
    read = _Reader(model, processor)
    head = ValueHead(hidden_size_of(model)).to(input_device(model))
    if config.train_backbone and not any(each.requires_grad for each in model.parameters()):
        raise RequestError(
            "train_backbone is set, but no parameter of the model requires a gradient: add LoRA to the "
            "model, or leave train_backbone out"
        )
    train = _train_together if config.train_backbone else _train_alone
    was_training = model.training
    try:
        losses = train(model, head, read, trained, config, progress)
        model.eval()
        found = _predict(head, read, held_out, config) if held_out else None
    finally:
        model.train(was_training)
    report = {
        "config": asdict(config),
        "answers": len(trained),
        "steps": sum(len(each.values) for each in trained),
        "loss": round(losses[-1], 5),
        "backbone": "trained" if config.train_backbone else "frozen",
    }
    if found is not None:
        values = torch.cat([each.values for each in held_out])
        mean = torch.cat([each.values for each in trained]).mean()
        constant = torch.full_like(values, float(mean)).clamp(1e-6, 1 - 1e-6)
        report |= {
            "held_out_steps": len(values),
            "held_out_loss": round(float(F.binary_cross_entropy(found.clamp(1e-6, 1 - 1e-6), values)), 5),
            "held_out_loss_of_mean": round(float(F.binary_cross_entropy(constant, values)), 5),
        }
    return head.eval(), report


def _encode(
    processor: Any, records: Iterable[DraftRecord], images: Path, config: ValueConfig
) -> list[_Sample]:
    """Encode all answers with values: ids, pictures and values."""
    encoder, pictures = Encoder(processor), PictureEncoder(processor)
    samples = []
    for number, record in enumerate(records):
        chains = find_chains_with_values(record, tagged=config.tagged)
        if not chains:
            continue
        try:
            paths = tuple(resolve_image(images, name) for name in record.images)
            tokens = [pictures.count(*read_image_size(path)) for path in paths]
        except (ValueError, OSError) as error:
            raise DataError(f"record {record.id!r:.80}: {error}") from error
        content = (*[None] * len(paths), record.question) if len(paths) > 1 else ()
        for chain in chains:
            turn = Turn(record.question.strip(), chain.text, content=content)
            row = encoder.row([turn], tokens or None)
            places = [encoder.last_place(turn, row, at) for at, _ in chain.ends]
            values = torch.tensor([value for _, value in chain.ends], dtype=torch.float32)
            samples.append(_Sample(row, paths, torch.tensor(places), values, _draw(number, config)))
    return samples


def _draw(number: int, config: ValueConfig) -> bool:
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    return float(torch.rand((), generator=generator)) < config.held_out


class _Reader:
    """Runs the backbone over answers and their pictures, which are opened when they are needed."""

    def __init__(self, model: Any, processor: Any):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.device, self.backbone = input_device(model), base.base_model
        self.pictures, self.collator = PictureEncoder(processor), Collator(processor)

    def __call__(self, samples: Sequence[_Sample]) -> Tensor:
        """Return the last hidden states of all steps of some answers, (steps, width)."""
        opened: dict[Path, dict[str, Tensor]] = {}
        items = []
        for each in samples:
            for path in each.pictures:
                if path not in opened:
                    opened[path] = self.pictures(open_image(path))[0]
            shown = join_pictures([opened[path] for path in each.pictures]) if each.pictures else None
            items.append(TrainingItem((each.row,), shown))
        batch = {name: value.to(self.device) for name, value in self.collator(items).items()}
        del batch["labels"], batch["places"]
        hidden = self.backbone(**batch, use_cache=False, return_dict=True).last_hidden_state
        rows = torch.cat([torch.full_like(each.places, k) for k, each in enumerate(samples)])
        places = torch.cat([each.places for each in samples])
        return hidden[rows.to(hidden.device), places.to(hidden.device)]


def _batches(count: int, size: int, generator: torch.Generator) -> list[list[int]]:
    order = torch.randperm(count, generator=generator).tolist()
    return [order[at : at + size] for at in range(0, count, size)]


def _optimizer(head: ValueHead, parameters: list[Any], config: ValueConfig) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": list(head.parameters()), "lr": config.lr, "weight_decay": config.weight_decay}
    ]
    if parameters:
        groups.append({"params": parameters, "lr": config.backbone_lr, "weight_decay": config.weight_decay})
    return torch.optim.AdamW(groups)


def _step(optimizer: torch.optim.Optimizer, logits: Tensor, values: Tensor) -> float:
    loss = F.binary_cross_entropy_with_logits(logits, values.to(logits))
    if not torch.isfinite(loss):
        raise DataError("the loss of the value head is not finite: give a lower lr")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _train_alone(
    model: Any,
    head: ValueHead,
    read: _Reader,
    samples: Sequence[_Sample],
    config: ValueConfig,
    progress: Callable[[float, float], None],
) -> list[float]:
    """Train the head alone; return the mean loss of each pass. The backbone reads every answer once."""
    model.eval()
    states = []
    with torch.no_grad():
        for at in range(0, len(samples), config.batch):
            progress(at, len(samples))
            states.append(read(samples[at : at + config.batch]).float())
    hidden = torch.cat(states)
    # Hidden states have axes of very different sizes: the head learns on standard ones, and is folded back.
    mean, spread = hidden.mean(0), hidden.std(0, correction=0).clamp_min(1e-6)
    hidden = (hidden - mean) / spread
    values = torch.cat([each.values for each in samples]).to(hidden.device)
    optimizer = _optimizer(head, [], config)
    generator = torch.Generator().manual_seed(config.seed)
    losses = []
    for _ in range(config.epochs):
        batches = _batches(len(values), config.head_batch, generator)
        found = [_step(optimizer, head.logits(hidden[batch]), values[batch]) for batch in batches]
        losses.append(sum(found) / len(found))
    with torch.no_grad():
        head.linear.weight.div_(spread)
        head.linear.bias.sub_(head.linear.weight @ mean)
    return losses


def _train_together(
    model: Any,
    head: ValueHead,
    read: _Reader,
    samples: Sequence[_Sample],
    config: ValueConfig,
    progress: Callable[[float, float], None],
) -> list[float]:
    """Train head and backbone; return the mean loss of each pass."""
    model.train()
    optimizer = _optimizer(head, [each for each in model.parameters() if each.requires_grad], config)
    generator = torch.Generator().manual_seed(config.seed)
    losses = []
    for epoch in range(config.epochs):
        found = []
        for done, batch in enumerate(_batches(len(samples), config.batch, generator)):
            progress(epoch * len(samples) + done * config.batch, config.epochs * len(samples))
            chosen = [samples[k] for k in batch]
            logits = head.logits(read(chosen))
            found.append(_step(optimizer, logits, torch.cat([each.values for each in chosen])))
        losses.append(sum(found) / len(found))
    return losses


@torch.no_grad()
def _predict(head: ValueHead, read: _Reader, samples: Sequence[_Sample], config: ValueConfig) -> Tensor:
    """Predict the values of all steps of some answers, float32 on the CPU."""
    batches = [samples[at : at + config.batch] for at in range(0, len(samples), config.batch)]
    return torch.cat([head(read(batch)).float().cpu() for batch in batches])
