"""Hints name rejected phrases at the end of the user's turn. They are inserted as ids.

Published checkpoints were trained on the form `(Hint: potential incorrect phrases -> a, b)` (arXiv 2504.13169
§3.3). Training and decoding use the same class, so the ids are equal.

    writer = HintWriter(processor)
    at = writer.insert_at(prompt_ids)
    prompt_ids[:at] + writer.ids(["two cups"]) + prompt_ids[at:]

A hint is always text: a rejected phrase `</s>` or `<image>` is written in ordinary tokens, so it never ends a
turn or stands for a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from reverse.errors import RequestError
from reverse.models.processors.locked_tokenizer import tokenizer_lock

__all__ = ["HintWriter", "check_plain_text", "render_turns"]

_LONGEST = 1000  # characters of a phrase in a hint; longer ones are left out
_PROBES = ("qx a", "qx 7", "qx well?", "qx so.", "qx it)")  # texts whose ends tokenise differently


class HintWriter:
    """Writes hints of the last `limit` phrases for a processor or tokenizer with a chat template."""

    def __init__(self, processor: Any, limit: int = 5):
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.limit = limit
        self.suffix_ids: tuple[int, ...] = _find_suffix(processor, self.tokenizer)
        self._added = _find_added_ids(self.tokenizer)

    def text(self, phrases: Sequence[str]) -> str:
        """Return the hint of the last `limit` phrases, lower-cased and without repeats; "" without phrases.

        Phrases of more than 1,000 characters are left out.
        """
        short = (p.strip() for p in phrases if len(p) <= _LONGEST)
        distinct = list(dict.fromkeys(p.lower() for p in short if p))
        kept = distinct[-self.limit :] if self.limit else []
        return f" (Hint: potential incorrect phrases -> {', '.join(kept)})" if kept else ""

    def ids(self, phrases: Sequence[str]) -> list[int]:
        """Return the hint in ordinary ids, as they are after a word; [] without phrases."""
        hint = self.text(phrases)
        if not hint:
            return []
        ids = self._encode_after_word(hint, self._encode)
        if self._added.isdisjoint(ids):
            return ids
        ids = self._encode_after_word(hint, self._encode_plainly)
        if self._added.isdisjoint(ids):
            return ids
        added = self.tokenizer.convert_ids_to_tokens(sorted(self._added.intersection(ids)))
        raise RequestError(
            f"the tokenizer writes the hint {hint[:200]!r} with tokens of its own, {added}, and not as text: "
            "turn hints off with hints=0"
        )

    def _encode_after_word(self, hint: str, encode: Callable[[str], list[int]]) -> list[int]:
        # SentencePiece marks the start of a text, so the hint is encoded after a word.
        alone, joined = encode("a"), encode("a" + hint)
        if joined[: len(alone)] != alone:
            raise RequestError(f"cannot tokenise the hint {hint[:200]!r} apart from the word before it")
        return joined[len(alone) :]

    def _encode(self, text: str) -> list[int]:
        with tokenizer_lock():
            return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _encode_plainly(self, text: str) -> list[int]:
        """Return the ids of a text without any added tokens."""
        return list(self._plain_backend.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _plain_backend(self) -> Any:
        """The tokenizer without its added tokens. It is made when a phrase spells one of them."""
        from tokenizers import Tokenizer

        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = []
        state["post_processor"] = None  # it may name an added token
        return Tokenizer.from_str(json.dumps(state))

    def insert_at(self, prompt_ids: Sequence[int]) -> int:
        """Return the index in `prompt_ids` where the user's text ends.

        Raises RequestError if the prompt was not made with the processor's chat template.
        """
        at = len(prompt_ids) - len(self.suffix_ids)
        if at < 0 or tuple(prompt_ids[at:]) != self.suffix_ids:
            raise RequestError(
                f"the prompt ends with ids {list(prompt_ids[-len(self.suffix_ids) :])}, the chat template "
                f"with {list(self.suffix_ids)}: build it with apply_chat_template(..., "
                "add_generation_prompt=True), or turn hints off with hints=0"
            )
        return at


def check_plain_text(tokenizer: Any, name: str, text: str) -> None:
    """Raise RequestError if the tokenizer finds special tokens in a text, called `name` in the error."""
    with tokenizer_lock():
        ids = tokenizer.encode(text, add_special_tokens=False)
    found = sorted(_find_added_ids(tokenizer).intersection(ids))
    if found:
        raise RequestError(
            f"{name} holds {tokenizer.convert_ids_to_tokens(found)}, which this tokenizer reads as tokens of "
            f"its own (an end of turn, a picture) and not as text: take it out; it says {text[:200]!r}"
        )


def _find_added_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of added tokens, except those of blanks."""
    added = tokenizer.added_tokens_decoder
    return frozenset(i for i, token in added.items() if token.content.strip())


def _find_suffix(processor: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that the chat template writes after any text of the user."""
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise RequestError(
            f"{type(processor).__name__} has no chat template, so the end of the user's turn cannot be "
            "found: set processor.chat_template (to chat_template.jinja of the checkpoint); hints=0 is "
            "enough only for model.generate(custom_generate=…) on prompts that were built without a template"
        )
    suffix: list[int] | None = None
    for probe in _PROBES:
        ids = _render_question(processor, tokenizer, probe)
        if suffix is None:
            suffix = ids
        else:
            shared = 0
            while shared < min(len(suffix), len(ids)) and suffix[-1 - shared] == ids[-1 - shared]:
                shared += 1
            suffix = suffix[len(suffix) - shared :]
    if not suffix:
        raise RequestError(
            "the chat template writes nothing after the user's text, so hints have no place: use a "
            "template that writes the header of the answer, or turn hints off with hints=0"
        )
    return tuple(suffix)


def render_turns(processor: Any, turns: Sequence[tuple[str, str]]) -> tuple[list[str], list[Exception]]:
    """Render (role, text) turns with the chat template; return the texts and the errors of the template.

    Templates differ in whether the content of a turn is a list of parts or a string, so both are tried.
    """
    texts: list[str] = []
    errors: list[Exception] = []
    for is_list in (True, False):
        chat = [
            {"role": role, "content": [{"type": "text", "text": text}] if is_list else text}
            for role, text in turns
        ]
        try:
            texts.append(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        except Exception as error:
            errors.append(error)
    return texts, errors


def _render_question(processor: Any, tokenizer: Any, text: str) -> list[int]:
    texts, errors = render_turns(processor, [("user", text)])
    shown = next((each for each in texts if text in each), None)
    if shown is None:
        raise RequestError(f"the chat template does not show the user's text: {errors or 'it was left out'}")
    return list(tokenizer.encode(shown, add_special_tokens=False))
