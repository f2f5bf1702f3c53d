"""Turn pictures and prompts into tensors, in the same way for all families.

>>> inputs = prepare_inputs(processor, ["kitchen.png"], ["Describe this image."], family_of(model))
>>> inputs["input_ids"].shape
torch.Size([1, 606])
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature

from reverse.data.records.schema import IMAGE_TOKEN
from reverse.errors import RequestError, RequestTypeError
from reverse.models.families import Family
from reverse.models.inputs.chat_checks import check_chat, refuse_videos
from reverse.models.inputs.picture_parts import open_picture, resize, source_of
from reverse.models.inputs.picture_places import check_text, place_pictures, split_at_places
from reverse.models.processors.cached_processing import PerPictureProcessor, ProcessPicture
from reverse.models.processors.locked_tokenizer import LockedTokenizer
from reverse.models.processors.processor_checks import check_usable
from reverse.models.processors.template_checks import render_chat


def prepare_inputs(
    processor: Any,
    images: Any,
    prompts: str | Sequence[str] | Sequence[Mapping] | Sequence[Sequence[Mapping]],
    family: Family,
    *,
    system: str | None = None,
    context_length: int | None = None,
    process: ProcessPicture | None = None,
) -> BatchFeature:
    """Make the tensors of a batch of prompts, each with its pictures. Threads may share a processor.

    Args:
        processor: of `family`, as `load` returns it.
        images: one entry per prompt: a picture (anything that `reverse.data.pictures.opening.open_image`
        opens:
            a path, PIL image, bytes, open file, uint8 array or tensor), a list of them, or None. One picture
            or None may stand for a batch of one. None if the chats name their pictures themselves.
        prompts: plain prompts, which become the user's turn of the chat template; or chats, lists of messages
            `{"role": …, "content": …}` whose content may hold `{"type": "image", "image" | "path" | "url":
            picture | "file://…" | "data:image/…;base64,…"}` (qwen-vl-utils' sizes, `max_pixels` and so on,
            are followed for Qwen2.5-VL). Plain prompts and chats may be mixed in one batch. `<image>` in the
            user's text is the place of a picture (see `reverse.models.inputs.picture_places`).
        family: of the model.
        system: text of a system turn put before every prompt, and every chat without one.
        context_length: the model's, in tokens (`family.context_length(model.config)`); longer prompts are
            refused. None: not checked.
        process: makes the tensors of one picture, see `PerPictureProcessor`. None: the image processor makes
            those of all pictures at once.

    Returns:
        `input_ids` and `attention_mask`, int64 of shape (batch, length); `pixel_values`, float32; for
        Qwen2.5-VL also `image_grid_thw` of shape (pictures, 3) and `mm_token_type_ids` of shape (batch,
        length).

    Raises:
        RequestError: no prompts, an empty one, or a chat that does not end with the user's turn; a video; a
            malformed part of a chat; half of a surrogate pair in a text; not one entry of `images` per
            prompt; more or fewer placeholders than pictures; `system` beside a chat that has a system turn; a
            prompt longer than `context_length`.
        RequestTypeError: a prompt, `system`, a message, its content or a picture has the wrong type.
        CheckpointError: the processor lacks a chat template, a pad token or a setting that the number of
            image tokens follows from.
    """
    check_usable(processor, family)
    chats, per_chat = build_chats(images, prompts, family, system)
    pictures, texts = [], []
    for row, (chat, given) in enumerate(zip(chats, per_chat, strict=True)):
        chat, found = _collect_pictures(row, chat, given, processor)
        text = render_chat(processor, chat)
        _check_placeholders(row, text, len(found), family)
        pictures.append(found)
        texts.append(text)

    tokenizer = processor.tokenizer
    starts_itself = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
    own = copy.copy(processor)
    own.tokenizer = LockedTokenizer(tokenizer)
    if process is not None:
        own.image_processor = PerPictureProcessor(processor.image_processor, process)
    inputs = own(
        images=pictures if any(pictures) else None,
        text=texts,
        padding=len(texts) > 1,  # changes the tokenizer, which other threads may be using for one text
        padding_side="left",
        add_special_tokens=not starts_itself,  # a template that writes <s> itself gets no second one
        return_tensors="pt",
    )
    _check_lengths(inputs, context_length)
    return inputs


def build_chats(
    images: Any, prompts: Any, family: Family, system: str | None
) -> tuple[list[list[dict]], list[list[Any]]]:
    """Return every prompt as a chat, and the pictures that belong to each.

    Raises what `prepare_inputs` raises.
    """
    if not isinstance(prompts, (str, list, tuple)):
        raise RequestTypeError(
            f"prompts must be a text, a chat (a list of messages) or a list of either, got "
            f"{type(prompts).__name__}: try ['Describe this image.']"
        )
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping)):
        prompts = [prompts]
        if isinstance(images, (list, tuple)) and len(images) != 1:
            images = [list(images)]  # several pictures of one prompt
    if len(prompts) == 0:
        raise RequestError("prompts is empty: give at least one prompt")
    _check_system(system)
    for row, prompt in enumerate(prompts):
        refuse_videos(row, prompt)
    per_chat = _group_pictures(images, len(prompts))
    chats = []
    for row, (prompt, given) in enumerate(zip(prompts, per_chat, strict=True)):
        if not isinstance(prompt, str):
            chats.append(_add_system(row, check_chat(row, prompt), system))
            continue
        if not prompt.strip():
            raise RequestError(
                f"prompt {row} is empty, got {prompt!r}: ask something, 'Describe this image.'"
            )
        check_text(prompt, f"prompt {row}")
        chats.append(_build_chat(row, prompt, given, family, system))
        per_chat[row] = []  # they stand in the messages now
    return chats, per_chat


def _check_system(system: Any) -> None:
    if system is None:
        return
    if not isinstance(system, str):
        raise RequestTypeError(f"system must be a text or None, got {system!r:.80}: try 'Answer briefly.'")
    check_text(system, "system")
    if IMAGE_TOKEN in system:
        raise RequestError(
            f"system holds {IMAGE_TOKEN!r}, but pictures belong to the user's turn: "
            f"take {IMAGE_TOKEN!r} out of system"
        )


def _build_chat(row: int, prompt: str, given: list[Any], family: Family, system: str | None) -> list[dict]:
    """Make a chat of a plain prompt; its pictures stand at the places of `<image>`, or first."""
    if IMAGE_TOKEN not in prompt:
        return family.messages(prompt, given, system)
    parts = split_at_places(prompt, len(given), f"prompt {row}")
    pictures = iter(given)
    content = [{**part, "image": next(pictures)} if part["type"] == "image" else part for part in parts]
    return [*family.messages("", [], system)[:-1], {"role": "user", "content": content}]


def _add_system(row: int, chat: list[dict], system: str | None) -> list[dict]:
    if system is None:
        return chat
    if any(message["role"] == "system" for message in chat):
        raise RequestError(f"chat {row} has a system turn, and system={system!r:.80} is given too: give one")
    return [{"role": "system", "content": system}, *chat]


def _group_pictures(images: Any, n: int) -> list[list[Any]]:
    """Return `images` as one list of pictures per prompt."""
    if images is None:
        return [[] for _ in range(n)]
    if not isinstance(images, (list, tuple)):
        images = [images]
    if len(images) != n:
        raise RequestError(
            f"got {len(images)} entries of images for {n} prompts: give one entry per prompt (a picture, a "
            "list of pictures, or None)"
        )
    return [
        [] if entry is None else list(entry) if isinstance(entry, (list, tuple)) else [entry]
        for entry in images
    ]


def _collect_pictures(
    row: int, chat: list[dict], given: list[Any], processor: Any
) -> tuple[list[dict], list[Any]]:
    """Return the chat in plain content parts, and its opened pictures in order.

    `{"type": "image"}` without a picture, and `<image>` in a text, take the next of `given`.
    """
    remaining = list(given)
    plain, pictures = [], []
    for message in chat:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts = []
        for part in place_pictures(content, message["role"], f"prompt {row}"):
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
                continue
            source = source_of(part)
            if source is None and remaining:
                source = remaining.pop(0)
            if source is not None:
                pictures.append(resize(open_picture(source), part, processor))
            parts.append({"type": "image"})
        plain.append({"role": message["role"], "content": parts})
    return plain, pictures + [open_picture(source) for source in remaining]


def _check_placeholders(row: int, text: str, n_pictures: int, family: Family) -> None:
    found = text.count(family.image_token)
    wanted = n_pictures * family.placeholders_per_image
    if found == wanted:
        return
    remedy = (
        f"give a picture for each, or take {IMAGE_TOKEN!r} out of the prompt, and every picture is "
        "placed before the text"
        if found > wanted
        else "give fewer pictures, or a {'type': 'image'} part for each in the chat"
    )
    raise RequestError(f"prompt {row} has {found} image placeholders for {n_pictures} pictures: {remedy}")


def _check_lengths(inputs: BatchFeature, context_length: int | None) -> None:
    if context_length is None:
        return
    lengths = inputs["attention_mask"].sum(dim=1).tolist()  # (batch,)
    for row, length in enumerate(lengths):
        if length >= context_length:
            raise RequestError(
                f"prompt {row} takes {length} tokens with its pictures, and the model's context is "
                f"{context_length}: shorten the prompt, or give fewer or smaller pictures"
            )
