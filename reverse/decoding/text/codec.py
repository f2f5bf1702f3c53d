"""The tokenizer of a processor as decoding uses it: text of answers, hints and further turns.

codec = TextCodec(processor)
codec.decode(ids); codec.get_hint_writer(5); codec.encode_user_turn("Are you sure?")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerFast

from reverse.decoding.text.hints import HintWriter, check_plain_text, render_turns
from reverse.decoding.text.incremental_detokenizer import find_partial_byte_token
from reverse.decoding.verifier import NO_TAGS
from reverse.errors import RequestError, RequestTypeError
from reverse.models.processors.locked_tokenizer import tokenizer_lock
from reverse.tokens import find_token_ids
from reverse.tokens.spans import TokenIds

__all__ = ["TextCodec"]

_ANSWER = "qxzq."  # a text that is found again in the rendered template
_QUESTIONS = ("qx a", "qy")


class TextCodec:
    """Encodes and decodes for a processor or a tokenizer. Raises RequestTypeError for anything else.

    `tags` are the ids of the three tokens, or `NO_TAGS` if the vocabulary lacks them.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(self.tokenizer, "get_vocab"):
            raise RequestTypeError(
                f"processor must be a processor or a tokenizer, got {processor!r:.80}: load one, "
                "model, processor = reverse.load('tiny-llava')"
            )
        self._writers: dict[int, HintWriter] = {}
        try:
            self.tags: TokenIds = find_token_ids(self.tokenizer)
        except ValueError:  # plain decoding works without the tokens
            self.tags = NO_TAGS

    def check_tags(self) -> None:
        """Raise an error if the tokenizer lacks the three tokens, which checking needs."""
        if self.tags == NO_TAGS:  # reading the vocabulary takes long
            find_token_ids(self.tokenizer)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids with tags, without special tokens and without clean-up of spaces."""
        if self._decodes_plainly and "decode" not in vars(self.tokenizer):
            return self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @cached_property
    def _decodes_plainly(self) -> bool:
        """Whether transformers' `decode` only calls the Rust library's, which is five times as fast."""
        kind, plain = type(self.tokenizer), PreTrainedTokenizerFast
        methods = ("decode", "_decode", "backend_tokenizer")
        return issubclass(kind, plain) and all(getattr(kind, m) is getattr(plain, m) for m in methods)

    @cached_property
    def partial_byte_token(self) -> int | None:
        """See `find_partial_byte_token`."""
        return find_partial_byte_token(self.tokenizer)

    @cached_property
    def full_stop(self) -> int | None:
        """The id of the token ".", or None if the vocabulary lacks it."""
        return self.tokenizer.get_vocab().get(".")

    def get_hint_writer(self, limit: int) -> HintWriter:
        """Return the writer of hints of `limit` phrases. Raises RequestError without a chat template."""
        if limit not in self._writers:
            self._writers[limit] = HintWriter(self.processor, limit)
        return self._writers[limit]

    # ------------------------------------------------------------------ turns after an answer
    def encode_user_turn(self, text: str) -> tuple[Sequence[int], int]:
        """Return ids of the end of an answer, a turn of the user with `text`, and the next answer's header.

        Also returns how many of the last ids stand after the user's text. The ids are those of the chat
        template's text between two answers, so an answer is never tokenised again.
        Raises RequestError if the tokenizer finds special tokens in `text`, or the template does not show it.
        """
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"a turn of the user must say something, got {text!r:.80}")
        check_plain_text(self.tokenizer, "a turn of the user", text)
        before, after = self._around_turn
        ids = self._encode(before + text + after)
        suffix = self.get_hint_writer(0).suffix_ids
        if tuple(ids[len(ids) - len(suffix) :]) != suffix:
            raise RequestError(
                f"the turn {text[:80]!r} runs into the text of the chat template after it: end it with a word"
            )
        return ids, len(suffix)

    def encode_continuation(self, text: str) -> Sequence[int]:
        """Return the ids of text that continues an answer, as they are after a word."""
        check_plain_text(self.tokenizer, "the continuation", text)
        alone, joined = self._encode("a"), self._encode("a" + text)
        if joined[: len(alone)] != alone:
            raise RequestError(
                f"cannot tokenise the continuation {text[:80]!r} apart from the word before it"
            )
        return joined[len(alone) :]

    @cached_property
    def _around_turn(self) -> tuple[str, str]:
        """The text of the chat template before and after a turn of the user that follows an answer."""
        found = {self._render_turn(question) for question in _QUESTIONS}
        if len(found) != 1:
            raise RequestError(
                "the chat template writes another text between two turns for every question: a second turn "
                "needs a template that shows texts as they are"
            )
        return found.pop()

    def _render_turn(self, question: str) -> tuple[str, str]:
        turns = [("user", _QUESTIONS[0]), ("assistant", _ANSWER), ("user", question)]
        texts, errors = render_turns(self.processor, turns)
        for text in texts:
            _, answered, rest = text.partition(_ANSWER)
            before, asked, after = rest.rpartition(question)
            if answered and asked:
                return before, after
        raise RequestError(
            "the chat template does not show an answer and a second turn of the user "
            f"({errors or 'they were left out'}): modes with several turns need one that does"
        )

    def _encode(self, text: str) -> list[int]:
        with tokenizer_lock():
            return list(self.tokenizer.encode(text, add_special_tokens=False))
