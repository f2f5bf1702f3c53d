"""Commands that turn adapters and published checkpoints into plain checkpoints.

reverse merge runs/llava llava-merged --base llava-with-tokens
reverse convert reverse_llava_v15 OUT --vision clip-vit-large-patch14-336
reverse value-head llava-merged drafts.jsonl --images pictures
"""

from pathlib import Path
from typing import Annotated

import typer

from reverse.commands.runtime_setup import resolve_placement, silence_libraries
from reverse.commands.shared_options import Device, Seed
from reverse.errors import MissingFileError
from reverse.progress import show_phases, show_progress

_OUT = "Folder to write; it must not exist or be empty."
_DTYPE = "float32, bfloat16 or float16; by default as the weights were saved."


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command()(merge)
    app.command()(convert)
    app.command("value-head")(train_head)


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter, as training wrote it.")],
    out: Annotated[Path, typer.Argument(help=_OUT)],
    base: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of the base; by default the one that the adapter names."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=_DTYPE)] = None,
) -> None:
    """Merge a LoRA adapter, its token rows and its projector into a plain checkpoint."""
    silence_libraries()
    kind = resolve_placement("cpu", dtype)[1]
    from reverse.files.atomic_write import check_new
    from reverse.files.file_lock import output_lock
    from reverse.models.adapters.merging import merge_adapter

    check_new(out)
    with output_lock(out), show_phases("reading") as say:
        done = merge_adapter(adapter, out, base=base, dtype=kind, progress=say)
    modules = f", {', '.join(done.modules)} whole" if done.modules else ""
    checked = "weights compared" if done.checked else "only shapes and vocabulary compared: no fingerprint"
    typer.echo(
        f"{out}: {done.layers} matrices, {done.rows} token rows{modules}; base {done.base} ({checked}); "
        f"{done.probe}"
    )


def convert(
    src: Annotated[str, typer.Argument(help="Folder or hub id of a published checkpoint.")],
    out: Annotated[Path, typer.Argument(help=_OUT)],
    vision: Annotated[
        str | None, typer.Option(help="Folder or hub id of the CLIP tower, if SRC does not hold it.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a LoRA folder's base; by default the one that SRC names."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=_DTYPE)] = None,
) -> None:
    """Turn an original LLaVA (full or LoRA) or a published Qwen2.5-VL into a plain checkpoint."""
    silence_libraries()
    kind = resolve_placement("cpu", dtype)[1]
    from reverse.files.atomic_write import check_new
    from reverse.files.file_lock import output_lock
    from reverse.models.conversion.converter import convert as write

    check_new(out)
    with output_lock(out), show_progress("tensors") as progress:
        done = write(src, out, vision=vision, base=base, dtype=kind, progress=progress)
    ids = done.tokens
    known = (
        f"<SPAN> {ids.span}, </CN> {ids.cn}, </UN> {ids.un}"
        if ids
        else "without the three tokens: `reverse tokens add` puts them in"
    )
    typer.echo(f"{out}: {done.found}, {known}")


def train_head(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint; the head is written into it.")],
    drafts: Annotated[Path, typer.Argument(help="Draft file with verdicts or values.")],
    images: Annotated[Path, typer.Option(help="Folder that the drafts' pictures are relative to.")] = Path(
        "."
    ),
    name: Annotated[str, typer.Option(help="Name of the head.")] = "value",
    epochs: Annotated[int, typer.Option(help="Passes over the steps.")] = 20,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train a value head on the steps of drafts; the checkpoint itself stays as it is."""
    silence_libraries()
    if not checkpoint.is_dir():
        raise MissingFileError(
            f"no such folder: {checkpoint}: name the folder of a checkpoint, where the head is written"
        )
    from reverse.data.drafts.draft_files import read_drafts
    from reverse.models import load
    from reverse.models.value_head import save_value_head
    from reverse.training.value_training import ValueConfig, train_value_head

    config = ValueConfig(epochs=epochs, lr=lr, seed=seed)
    model, processor = load(checkpoint, device=resolve_placement(device, None)[0], require_tokens=False)
    with show_progress("answers read", transient=True) as progress:
        head, report = train_value_head(model, processor, read_drafts(drafts), images, config, progress)
    save_value_head(head, checkpoint, name, notes={"drafts": str(drafts), **report})
    measured = ""
    if "held_out_loss" in report:
        measured = (
            f"; on {report['held_out_steps']:,} steps of other questions {report['held_out_loss']:.3f}, "
            f"their mean alone {report['held_out_loss_of_mean']:.3f}"
        )
    typer.echo(f"{checkpoint}: {report['steps']:,} steps, loss {report['loss']:.3f}{measured}")
