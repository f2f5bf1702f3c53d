"""Hints: rejected phrases named at the end of the user's turn, inserted as ids.

The form `(Hint: potential incorrect phrases -> a, b)` is what published checkpoints were trained on
(arXiv 2504.13169 §3.3). Training and decoding both insert it through this class, so the ids are the same.

    writer = HintWriter(processor)
    at = writer.insert_at(prompt_ids)
    prompt_ids[:at] + writer.ids(["two cups"]) + prompt_ids[at:]

A hint is text, whatever it spells: a rejected phrase `</s>` or `<image>` is written in ordinary tokens, and
never ends a turn or asks for a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from reverse.errors import RequestError
from reverse.models.processors.locked_tokenizer import tokenizer_lock

__all__ = ["HintWriter", "check_plain_text"]

_LONGEST = 1000  # characters of a phrase in a hint: more would fill the context and not help
_PROBES = ("qx a", "qx 7", "qx well?", "qx so.", "qx it)")  # texts whose ends tokenise differently


class HintWriter:
    """Writes hints for a processor (or tokenizer) with a chat template: the last `limit` phrases."""

    def __init__(self, processor: Any, limit: int = 5):
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.limit = limit
        self.suffix_ids: tuple[int, ...] = _after_user_text(processor, self.tokenizer)
        self._own = _own_ids(self.tokenizer)

    def text(self, phrases: Sequence[str]) -> str:
        """The hint, or "" without phrases: lower-cased, no repeats, the last `limit` of them.

        What is longer than 1,000 characters is no phrase to be avoided, and is left out.
        """
        short = (p.strip() for p in phrases if len(p) <= _LONGEST)
        distinct = list(dict.fromkeys(p.lower() for p in short if p))
        kept = distinct[-self.limit :] if self.limit else []
        return f" (Hint: potential incorrect phrases -> {', '.join(kept)})" if kept else ""

    def ids(self, phrases: Sequence[str]) -> list[int]:
        """The hint's ids as they come after a word of the question, ordinary ones; [] without phrases."""
        hint = self.text(phrases)
        if not hint:
            return []
        ids = self._after_word(hint, self._encode)
        if self._own.isdisjoint(ids):
            return ids
        ids = self._after_word(hint, self._encode_plainly)
        if self._own.isdisjoint(ids):
            return ids
        raise RequestError(
            f"the tokenizer writes the hint {hint[:200]!r} with tokens of its own, "
            f"{self.tokenizer.convert_ids_to_tokens(sorted(self._own.intersection(ids)))}, and not as text: "
            "turn hints off with hints=0"
        )

    def _after_word(self, hint: str, encode: Callable[[str], list[int]]) -> list[int]:
        # What a hint looks like after a word, in every tokenizer: SentencePiece marks the start of a text.
        alone, joined = encode("a"), encode("a" + hint)
        if joined[: len(alone)] != alone:
            raise RequestError(f"cannot tokenise the hint {hint[:200]!r} apart from the word before it")
        return joined[len(alone) :]

    def _encode(self, text: str) -> list[int]:
        with tokenizer_lock():
            return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _encode_plainly(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a token of the tokenizer's own."""
        return list(self._plain_backend.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _plain_backend(self) -> Any:
        """The tokenizer without its added tokens: made when a phrase spells one of them, which is rare."""
        from tokenizers import Tokenizer

        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = []
        state["post_processor"] = None  # it may name one of them, and adds nothing here
        return Tokenizer.from_str(json.dumps(state))

    def insert_at(self, prompt_ids: Sequence[int]) -> int:
        """Index in `prompt_ids` where the user's text ends and hints go.

        Raises ValueError where the prompt was not made with the processor's chat template.
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
    """Refuse a text of the caller's, called `name`, that the tokenizer reads as more than text.

    Raises ValueError that names the token found and where it stands.
    """
    with tokenizer_lock():
        ids = tokenizer.encode(text, add_special_tokens=False)
    found = sorted(_own_ids(tokenizer).intersection(ids))
    if found:
        raise RequestError(
            f"{name} holds {tokenizer.convert_ids_to_tokens(found)}, which this tokenizer reads as tokens of "
            f"its own (an end of turn, a picture) and not as text: take it out; it says {text[:200]!r}"
        )


def _own_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of added tokens, runs of blanks excepted, which some tokenizers keep as such."""
    added = tokenizer.added_tokens_decoder
    return frozenset(i for i, token in added.items() if token.content.strip())


def _after_user_text(processor: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that the chat template writes after the user's text, whatever that text is."""
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise RequestError(
            f"{type(processor).__name__} has no chat template, so the end of the user's turn cannot be "
            "found: set processor.chat_template (to chat_template.jinja of the checkpoint); hints=0 is "
            "enough only for model.generate(custom_generate=…) on prompts that were built without a template"
        )
    suffix: list[int] | None = None
    for probe in _PROBES:
        ids = _render(processor, tokenizer, probe)
        if suffix is None:
            suffix = ids
        else:
            shared = 0
            while shared < min(len(suffix), len(ids)) and suffix[-1 - shared] == ids[-1 - shared]:
                shared += 1
            suffix = suffix[len(suffix) - shared :]
    if not suffix:
        raise RequestError(
            "the chat template ends with the user's text: hints need a turn header, or hints=0"
        )
    return tuple(suffix)


def _render(processor: Any, tokenizer: Any, text: str) -> list[int]:
    errors = []
    # Templates differ in whether a turn's content is a list of parts or a string.
    for content in ([{"type": "text", "text": text}], text):
        try:
            shown = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:
            errors.append(error)
            continue
        if text in shown:
            return list(tokenizer.encode(shown, add_special_tokens=False))
    raise RequestError(f"the chat template does not show the user's text: {errors or 'it was left out'}")
