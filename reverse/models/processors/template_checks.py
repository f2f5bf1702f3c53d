"""Refuse a chat template that does not end, takes too much memory, or does not write the picture's place.

A template is an untrusted program. transformers renders it in a sandbox that limits what it may touch, but
neither its time nor its memory: two nested loops over `range(99999)` run for hours. So a template that is not
this library's own is rendered when a checkpoint is loaded, over a dozen chats, in a process of its own that
is limited in both. It may behave differently on other chats, so each chat has a deadline (`render_chat`).
"""

import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from reverse.errors import CheckpointError
from reverse.models.families import FAMILIES, Family

MAX_CHARACTERS = 1 << 20  # of a template; the longest public one has 20,000
RENDER_SECONDS = 20  # for one chat, which takes milliseconds
_CPU_SECONDS = 2  # for all chats together; public templates take milliseconds
_WALL_SECONDS = 60  # only a machine that is very busy takes longer than its processor time
_BYTES = 1 << 30  # of memory
_LONGEST = 1 << 20  # characters of a rendered chat of a few words
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def check_template(place: str, processor: Any, family: Family) -> None:
    """Raise CheckpointError, with the remedy, for a template that is missing, damaged or does not end.

    A template that only the tokenizer has becomes the processor's.
    """
    tokenizer = processor.tokenizer
    if not processor.chat_template and tokenizer.chat_template:
        processor.chat_template = tokenizer.chat_template
    template = processor.chat_template
    if not template:
        raise CheckpointError(
            f"{place!r} has no chat template, and no prompt can be written without one: copy "
            "chat_template.jinja (or chat_template.json) of the checkpoint that it was made from into the "
            "folder, or save it with `processor.chat_template = …; processor.save_pretrained(…)`"
        )
    check_bounded(place, template, {name: getattr(tokenizer, name, None) for name in _TOKENS})
    question = family.messages("What is this?", [None])
    try:
        text = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template of another kind raises anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"the chat template of {place!r} cannot write a question with a picture ({reason}): {_REMEDY}"
        ) from error
    found = text.count(family.image_token)
    if found != family.placeholders_per_image or "What is this?" not in text:
        raise CheckpointError(
            f"the chat template of {place!r} writes {text[:120]!r} for a question with one picture: "
            f"{family.image_token!r} must stand there {family.placeholders_per_image} times, beside the "
            f"question; {_REMEDY}"
        )


def render_chat(processor: Any, chat: list[dict[str, Any]]) -> str:
    """Render `chat` with the processor's template, with the header of an answer at the end.

    Raises CheckpointError if a template that is not this library's own takes more than `RENDER_SECONDS`.
    """
    template = processor.chat_template
    if isinstance(template, str) and template.strip() in _own_templates():
        return processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    try:
        with _interrupt_after(RENDER_SECONDS):
            return processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except _RenderTimeout:
        raise CheckpointError(
            f"the chat template does not end within {RENDER_SECONDS} seconds for a chat of {len(chat)} "
            f"messages: {_REMEDY}"
        ) from None


class _RenderTimeout(BaseException):
    """Raised in a thread that renders; not an Exception, so that no handler below catches it."""


@contextmanager
def _interrupt_after(seconds: float) -> Iterator[None]:
    """Raise `_RenderTimeout` in this thread when the block takes longer.

    Python raises it between two bytecodes, which is enough for loops; one long call of C is not interrupted.
    """
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    thread = ctypes.c_ulong(threading.get_ident())
    lock, ended = threading.Lock(), threading.Event()

    def interrupt() -> None:
        with lock:
            if not ended.is_set():
                raise_in(thread, ctypes.py_object(_RenderTimeout))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended.set()
            raise_in(thread, None)  # withdraw one that was raised and has not arrived yet
        timer.cancel()


def check_bounded(place: str, template: Any, names: dict[str, str | None]) -> None:
    """Raise CheckpointError for a template that takes too much time or memory for a few short chats.

    Args:
        place: the checkpoint, for the message.
        template: jinja, or several by their names.
        names: tokens that the template may use (`bos_token` and so on).
    """
    for one in template.values() if isinstance(template, dict) else (template,):
        if not isinstance(one, str):
            raise CheckpointError(
                f"{place!r} has a chat template that is not a text but {one!r:.60}: {_REMEDY}"
            )
        if len(one) > MAX_CHARACTERS:
            raise CheckpointError(
                f"{place!r} has a chat template of {len(one):,} characters, more than {MAX_CHARACTERS:,}: "
                f"{_REMEDY}"
            )
        if one.strip() in _own_templates():
            continue
        fault = _find_fault(one, tuple(sorted((k, v) for k, v in names.items() if v is not None)))
        if fault is not None:
            raise CheckpointError(f"the chat template of {place!r} {fault}: {_REMEDY}")


def _own_templates() -> set[str]:
    return {family.chat_template.strip() for family in FAMILIES}


@lru_cache(maxsize=64)
def _find_fault(template: str, names: tuple[tuple[str, str], ...]) -> str | None:
    """Return the fault of `template` when a limited process renders it; None without a fault."""
    job = {
        "template": template,
        "names": dict(names),
        "chats": list(_chats()),
        "seconds": _CPU_SECONDS,
        "bytes": _BYTES,
        "path": [entry for entry in sys.path if entry],
    }
    script = Path(__file__).with_name("template_sandbox.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(script)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {_WALL_SECONDS} seconds"
    if done.returncode:
        if "MemoryError" in done.stderr:
            return f"takes more than {_BYTES >> 20} MB of memory for a few short chats"
        if done.returncode < 0:
            return f"does not end within {_CPU_SECONDS} seconds for a few short chats"
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        return f"could not be tried in a process of its own ({reason[0][:200]})"
    answer = json.loads(done.stdout)
    if "invalid" in answer:
        return f"is no valid template ({answer['invalid']})"
    if answer["longest"] > _LONGEST:
        return f"writes {answer['longest']:,} characters for a short chat"
    return None


def _chats() -> Iterator[list[dict[str, Any]]]:
    """Return chats of the shapes that occur in use, training and benchmarks."""
    picture, text = {"type": "image"}, {"type": "text", "text": "What is this?"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    for parts in ([text], [picture, text], [picture, picture, text], [text, picture]):
        yield [{"role": "user", "content": parts}]
        yield [system, {"role": "user", "content": parts}]
    yield [{"role": "user", "content": "What is this?"}]
    yield [{"role": "user", "content": [picture, text]}, answer]
    yield [system, {"role": "user", "content": [picture, text]}, answer, {"role": "user", "content": [text]}]
    yield [{"role": "user", "content": [picture, text]}, *[answer, {"role": "user", "content": [text]}] * 8]


_REMEDY = "take chat_template.jinja of the checkpoint that it was made from"
