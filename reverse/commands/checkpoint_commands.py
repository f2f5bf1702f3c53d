"""Commands that turn adapters and published checkpoints into plain checkpoints.

reverse merge runs/llava llava-merged --base llava-with-tokens
reverse convert reverse_llava_v15 OUT --vision clip-vit-large-patch14-336
"""

from pathlib import Path
from typing import Annotated

import typer

from reverse.commands.runtime_setup import resolve_placement, silence_libraries
from reverse.progress import show_phases, show_progress

_OUT = "Folder to write; it must not exist or be empty."
_DTYPE = "float32, bfloat16 or float16; by default as the weights were saved."


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command()(merge)
    app.command()(convert)


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
