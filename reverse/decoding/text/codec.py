"""Ids and text of one processor: what decoding reads of an answer and writes into a prompt.

codec = TextCodec(processor)
codec.decode(ids); codec.hint_writer(5); codec.user_turn("Are you sure?")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerFast

from reverse.decoding.text.hints import HintWriter, check_plain_text
from reverse.decoding.text.incremental_detokenizer import half_character
from reverse.decoding.verifier import NO_TAGS
from reverse.errors import RequestError, RequestTypeError
from reverse.models.processors.locked_tokenizer import tokenizer_lock
from reverse.tokens import find_token_ids
from reverse.tokens.spans import TokenIds

__all__ = ["TextCodec"]

_ANSWER = "qxzq."  # an answer that no template alters; found again in what it renders
_QUESTIONS = ("qx a", "qy")


class TextCodec:
    """The tokenizer of a processor (or a tokenizer), as decoding needs it.

    `tags` are the ids of the three tokens, or ids that never come up where the vocabulary lacks them.
    Raises TypeError for what is no processor.
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
        except ValueError:  # plain decoding works for models without the tokens too
            self.tags = NO_TAGS

    def check_tags(self) -> None:
        """Raise ValueError where the tokenizer lacks the three tokens, which checking needs."""
        if self.tags == NO_TAGS:  # reading the vocabulary takes long
            find_token_ids(self.tokenizer)

    def decode(self, ids: list[int]) -> str:
        """Ids as text: tags shown, special tokens not, no clean-up of spaces."""
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
        """An id that is a part of a character, or None; see `half_character`."""
        return half_character(self.tokenizer)

    @cached_property
    def full_stop(self) -> int | None:
        """The id of the token ".", or None where the vocabulary has none."""
        return self.tokenizer.get_vocab().get(".")

    def hint_writer(self, limit: int) -> HintWriter:
        """The writer of hints that name `limit` phrases. Raises ValueError without a chat template."""
        if limit not in self._writers:
            self._writers[limit] = HintWriter(self.processor, limit)
        return self._writers[limit]

    # ------------------------------------------------------------------ turns behind an answer
    def user_turn(self, text: str) -> tuple[Sequence[int], int]:
        """Ids of the end of an answer, a turn of the user that says `text`, and the next answer's header.

        Also how many of the last ids stand behind the user's text: hints go before these. The ids are those
        of the chat template's own text between the two answers, so an answer is never tokenised again.
        Raises ValueError where `text` is read as more than text, or the template does not show it.
        """
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"a turn of the user must say something, got {text!r:.80}")
        check_plain_text(self.tokenizer, "a turn of the user", text)
        before, after = self._around_turn
        ids = self._encode(before + text + after)
        suffix = self.hint_writer(0).suffix_ids
        if tuple(ids[len(ids) - len(suffix) :]) != suffix:
            raise RequestError(
                f"the turn {text[:80]!r} runs into what the chat template writes behind it: end it with a "
                "word"
            )
        return ids, len(suffix)

    def continuation(self, text: str) -> Sequence[int]:
        """Ids of text that goes on inside an answer, as they come after a word."""
        check_plain_text(self.tokenizer, "the continuation", text)
        alone, joined = self._encode("a"), self._encode("a" + text)
        if joined[: len(alone)] != alone:
            raise RequestError(
                f"cannot tokenise the continuation {text[:80]!r} apart from the word before it"
            )
        return joined[len(alone) :]

    @cached_property
    def _around_turn(self) -> tuple[str, str]:
        """What the chat template writes between an answer and the user's text behind it, and after that."""
        found = {self._render_turn(question) for question in _QUESTIONS}
        if len(found) != 1:
            raise RequestError(
                "the chat template writes something else between two turns for every text: a second turn "
                "needs a template that shows texts as they are"
            )
        return found.pop()

    def _render_turn(self, question: str) -> tuple[str, str]:
        errors: list[Exception] = []
        for wrap in (lambda text: [{"type": "text", "text": text}], lambda text: text):
            chat = [
                {"role": "user", "content": wrap(_QUESTIONS[0])},
                {"role": "assistant", "content": wrap(_ANSWER)},
                {"role": "user", "content": wrap(question)},
            ]
            try:
                shown = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            except Exception as error:  # templates differ in whether content is a list of parts or a string
                errors.append(error)
                continue
            _, answered, rest = shown.partition(_ANSWER)
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
