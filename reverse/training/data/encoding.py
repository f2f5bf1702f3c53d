"""Encode a conversation as ids and labels, with the model's own chat template.

    encoder = Encoder(processor)
    row = encoder.row([Turn("Describe this image.", "I see <SPAN>two cups</CN>.")], image_tokens=196)
    row.ids, row.labels        # (length,) each, int64

A row's ids are those of the whole rendered conversation, tokenised at once, as the processor and decoding do
it. They are joined from pieces. Each piece is tokenised after the text before it, because a tokenizer may
treat the start of a text specially (SentencePiece's "▁"): template and question up to the place where the
assistant begins, later questions after the end of turn, answers between the template's last words and their
end of turn. Every new encoder compares both ways on test conversations (`encoding_check`). An answer's end of
turn is a target: the one that the template writes (`</s>`, `<|im_end|>`, Llama-3.1's `<|eot_id|>`), even if
the tokenizer has another end of sequence. So the place of every answer is known from the way the sample was
joined. A text that holds one of the tokenizer's own tokens is refused: `</s>` in HTML would become an end of
turn that is trained in mid-sentence. (Decoding prefills such a question as the processor tokenises it, `</s>`
as the token: no model is trained on one.) If a tokenizer or a template does not allow this, an error says so,
and no sample is dropped (LLaVA's "tokenization mismatch (ignored)", haotian-liu/LLaVA#779).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from reverse.data.records.record_rules import find_text_faults
from reverse.errors import DataError
from reverse.tokens import TAGS, TokenIds, find_token_ids
from reverse.training.data.labels import LabelledPart, join
from reverse.training.data.record_turns import Content, Turn, list_contents, write_messages

__all__ = ["Encoder", "Row", "TrainingItem", "Turn"]

Ids = npt.NDArray[np.int64]
MARK = "\u2983{}\u2984"  # stands for an answer while a template is taken apart
_LIKE_A_TAG = re.compile(r"<[^\s<>]+>")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: `ids` and `labels` of shape (length,), int64; the pictures' ids are written out."""

    ids: Ids
    labels: Ids
    cut: int = 0  # turns that did not fit
    pictures: int = 0  # that stand in it: of several, the first ones
    weight: float = 1.0  # multiplies the loss of its targets


@dataclass(frozen=True, slots=True)
class TrainingItem:
    """An item of a dataset: rows about the same pictures, and their tensors (None without pictures)."""

    rows: tuple[Row, ...]
    picture: Mapping[str, Tensor] | None


class Encoder:
    """Makes a `Row` from turns, for one processor. It caches rendered questions.

    Args:
        processor: with a chat template; the three tokens are optional (without them nothing is masked).
        max_length: rows longer than this lose turns from the end (`Row.cut` says how many); a first turn that
            is too long is an error.
        cache: how many lists of questions are remembered.
    """

    def __init__(self, processor: Any, *, max_length: int | None = None, cache: int = 8192):
        from reverse.decoding.text.hints import HintWriter
        from reverse.training.data.encoding_check import check_encoding

        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.hints = HintWriter(processor)
        self.image_id = int(processor.image_token_id)
        self.tail, self.end_text = self._end_of_turn()  # blanks after an answer, and the end of its turn
        self.end = self._tokenise(self.end_text)  # (1,)
        self._tags = _tags(self.tokenizer)
        own = _own_tokens(self.tokenizer)
        self.not_in_question = _any_of(own)  # what no question or hint may hold
        self.not_in_answer = _any_of(own - set(TAGS))
        self._cache_size = cache
        self._pieces: dict[tuple[Content, ...], list[Ids]] = {}  # what stands before each answer
        self._takes_several = False  # whether it was compared with the whole for several pictures
        self._lead, self._anchor = self._answer_start()
        self._anchor_ids = self._tokenise(self._anchor)
        self._trims = self._trims_answers()
        check_encoding(self)
        self._pieces.clear()

    def row(self, turns: Sequence[Turn], image_tokens: int | Sequence[int] | None) -> Row:
        """Encode one conversation as ids and labels.

        Args:
            turns: at least one. A single picture stands in the first turn; several stand where the `content`
            of the turns says. image_tokens: number of ids that stand for the picture, or one number per
                picture; None without pictures.

        Raises:
            ValueError: no turns, a turn that says nothing or holds half of a surrogate pair, a token of the
            tokenizer's own in a text (the three in an answer are not errors), a first turn longer than
            `max_length`, a `</UN>` without its `<SPAN>`, text that cannot be taken apart, or not one number
            of ids for each picture.
        """
        if not turns:
            raise DataError("a conversation needs at least one question and answer, got none")
        tokens = _as_list(image_tokens)
        contents = list_contents(turns, bool(tokens))
        places = [content.count(None) for content in contents]
        if sum(places) != len(tokens):
            raise DataError(f"the questions show {sum(places)} pictures, and {len(tokens)} are given")
        for k, turn in enumerate(turns):
            for fault in find_text_faults(k, turn.question, turn.answer, turn.hints, places[k] > 0):
                raise DataError(fault.message)
            self._check_text(turn, k)
        if len(tokens) > 1 and not self._takes_several:
            from reverse.training.data.encoding_check import check_several_pictures

            check_several_pictures(self)
            self._takes_several = True
        segments: list[LabelledPart] = []
        length = cut = shown = 0
        for k, (turn, (prompt, answer)) in enumerate(
            zip(turns, self.pieces(turns, bool(tokens)), strict=True)
        ):
            if places[k]:
                prompt = self._write_out(prompt, tokens[shown : shown + places[k]])
            length += len(prompt) + len(answer)
            if self.max_length is not None and length > self.max_length:
                if not segments:
                    raise DataError(
                        f"the first turn takes {length} ids and max_length is {self.max_length}: raise it, "
                        f"or leave the sample out; it asks {turn.question[:80]!r}"
                    )
                cut = len(turns) - k
                break
            given = self._given_ids(turn, answer) if turn.given else 0
            segments += [LabelledPart(prompt, False), LabelledPart(answer, True, turn.targets, given)]
            shown += places[k]
        tags = {"span_id": self._tags.span, "cn_id": self._tags.cn, "un_id": self._tags.un}
        try:
            return Row(*join(segments, **tags), cut=cut, pictures=shown)
        except ValueError as error:
            said = " | ".join(f"{turn.question[:80]} -> {turn.answer}" for turn in turns)
            raise DataError(f"{error}; the sample: {said[:600]}") from error

    def pieces(self, turns: Sequence[Turn], picture: bool) -> list[tuple[Ids, Ids]]:
        """Return ids before each answer (with hints, a picture as one id), and ids of the answer with its
        end.
        """
        prompts = self._prompts(list_contents(turns, picture))
        hinted = [self._with_hints(before, turn.hints) for turn, before in zip(turns, prompts, strict=True)]
        return list(zip(hinted, self._answers([turn.answer for turn in turns]), strict=True))

    def _check_text(self, turn: Turn, k: int) -> None:
        """Raise DataError if a text holds one of the tokenizer's own tokens."""
        for name, text, refused in (
            ("question", turn.question, self.not_in_question),
            ("answer", turn.answer, self.not_in_answer),
            *(("hint", hint.lower(), self.not_in_question) for hint in turn.hints),  # as it is written
        ):
            if found := refused.search(text):
                near = text[max(0, found.start() - 40) : found.end() + 40]
                raise DataError(
                    f"turn {k} says {found.group()!r} in its {name}, which this tokenizer reads as a token "
                    "of its own (an end of turn, a picture) and not as text: write it with a blank inside "
                    f"or leave the record out; it says {near!r}"
                )

    def _with_hints(self, prompt: Ids, phrases: Sequence[str]) -> Ids:
        """Insert the ids of the hints where decoding inserts them."""
        if not phrases:
            return prompt
        return np.insert(prompt, self.hints.insert_at(prompt.tolist()), self.hints.ids(phrases))

    def _write_out(self, prompt: Ids, image_tokens: Sequence[int]) -> Ids:
        """Repeat the id of each picture as many times as `image_tokens` says."""
        times = np.ones(len(prompt), dtype=np.int64)
        times[prompt == self.image_id] = image_tokens
        return np.repeat(prompt, times)

    def _answers(self, answers: Sequence[str]) -> list[Ids]:
        """Encode each answer as it follows the template's last words, its end of turn included."""
        if self._trims[0]:
            answers = [answer.lstrip() for answer in answers]
        if self._trims[1]:
            answers = [answer.rstrip() for answer in answers]
        before, after = self._anchor + self._lead, self.tail + self.end_text
        texts = [before + answer + after for answer in answers]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        cut, end = len(self._anchor_ids), int(self.end[0])
        head = self._anchor_ids.tolist()
        for ids, text in zip(encoded, texts, strict=True):
            if ids[:cut] != head or len(ids) <= cut + 1 or ids[-1] != end:
                raise DataError(
                    f"the answer in {text!r:.600} cannot be tokenised apart from the prompt: it is blank, or "
                    "the tokenizer merges its first characters with the template's last ones"
                )
        return [np.array(ids[cut:], dtype=np.int64) for ids in encoded]

    def _given_ids(self, turn: Turn, answer: Ids) -> int:
        """Count the ids of an answer that lie within its first `turn.given` characters."""
        start = turn.answer[: turn.given]
        before = self._tokenise(self._anchor + self._lead + (start.lstrip() if self._trims[0] else start))
        whole = np.concatenate([self._anchor_ids, answer])[: len(before)]
        before = before[: len(whole)]
        same = int(np.argmin(np.append(before == whole, False)))
        return max(0, same - len(self._anchor_ids))

    def last_place(self, turn: Turn, row: Row, characters: int) -> int:
        """The place in the row of a single turn of the last id that stands within the answer's characters."""
        answer = self._answers([turn.answer])[0]
        given = self._given_ids(replace(turn, given=characters), answer)
        return len(row.ids) - len(answer) + max(given, 1) - 1

    def _prompts(self, contents: tuple[Content, ...]) -> list[Ids]:
        pieces = self._pieces.get(contents)
        if pieces is None:
            pieces = self._take_apart(contents)
            if len(self._pieces) < self._cache_size:
                self._pieces[contents] = pieces
        return pieces

    def _take_apart(self, contents: Sequence[Content]) -> list[Ids]:
        """Return the ids before each answer: the conversation is rendered with marks in place of answers and
        cut at them.
        """
        marks = [MARK.format(k) for k in range(len(contents))]
        messages = write_messages(contents, marks)
        prompt = self._render(messages[:1], add_generation_prompt=True)
        parts = []
        rest = self._render(messages, add_generation_prompt=False)
        for mark in marks:
            part, found, rest = rest.partition(mark)
            if not found:
                raise DataError("the chat template does not show the assistant's answers as they are")
            parts.append(part)
        if parts[0] != prompt + self._lead:
            raise DataError(
                f"the chat template writes {parts[0]!r} before an answer and {prompt!r} before generating "
                "one: a model trained like this would see other prompts than in generation"
            )
        before = [self._prompt_ids(prompt)]
        for part in parts[1:]:
            if not part.endswith(self._lead):
                raise DataError(f"the chat template opens a later answer differently: {part!r}")
            part = part[: len(part) - len(self._lead)]
            end = self.tail + self.end_text
            # Templates that write no end of turn (llava-1.5-hf) get the one the model was trained with.
            before.append(self._after_end(part.removeprefix(end) if part.startswith(end) else part.lstrip()))
        found_images = [int((piece == self.image_id).sum()) for piece in before]
        wanted = [content.count(None) for content in contents]
        if found_images != wanted:
            raise DataError(
                f"the chat template writes {sum(found_images)} times {self.processor.image_token!r} in a "
                f"conversation with {sum(wanted)} pictures, by turns {found_images} and not {wanted}: "
                f"{''.join(parts)[:300]!r}"
            )
        return before

    def _after_end(self, part: str) -> Ids:
        """Encode the text that the template writes after an end of turn."""
        ids = self._tokenise(self.end_text + part)
        if not np.array_equal(ids[:1], self.end):
            raise DataError(
                f"the tokenizer reads {self.end_text + part[:80]!r} as {ids[:8].tolist()}: the end of turn "
                f"{self.end_text!r} is not its first token"
            )
        return ids[1:]

    def _trims_answers(self) -> tuple[bool, bool]:
        """Whether the template strips blanks from both ends of an answer, as Llama-3.1's does."""
        mark = MARK.format(0)
        lengths = [
            len(self._render(write_messages([("question",)], [answer]), add_generation_prompt=False))
            for answer in (mark, " " + mark, mark + " ")
        ]
        return lengths[1] == lengths[0], lengths[2] == lengths[0]

    def _end_of_turn(self) -> tuple[str, str]:
        """Return the blanks and the token that the template writes after an answer.

        It is the tokenizer's own end of text if the template writes none.
        """
        mark = MARK.format(0)
        whole = self._render(write_messages([("question",)], [mark]), add_generation_prompt=False)
        after = whole.partition(mark)[2]
        text = after.strip()
        if not text:
            if self.tokenizer.eos_token is None:
                raise DataError(
                    f"nothing ends the assistant's turn: the chat template writes {whole!r}, and the "
                    "tokenizer has no eos_token: name one"
                )
            return "", str(self.tokenizer.eos_token)
        ids = self._tokenise(text)
        if len(ids) != 1 or int(ids[0]) not in self.tokenizer.added_tokens_decoder:
            raise DataError(
                f"the chat template ends the assistant's turn with {text!r}, ids {ids.tolist()}: it must be "
                f"one token of its own that generation stops at; the template writes {whole!r}"
            )
        return after[: len(after) - len(after.lstrip())], text

    def _answer_start(self) -> tuple[str, str]:
        """Return the text that the template writes between generation prompt and answer, and its last words
        before.
        """
        mark = MARK.format(0)
        messages = write_messages([("question",)], [mark])
        prompt = self._render(messages[:1], add_generation_prompt=True)
        whole = self._render(messages, add_generation_prompt=False)
        before = whole.partition(mark)[0]
        if not before.startswith(prompt) or before[len(prompt) :].strip():
            raise DataError(
                f"the chat template writes {before!r} before an answer and {prompt!r} before generating one"
            )
        return before[len(prompt) :], prompt[prompt.rindex("question") + len("question") :]

    def _prompt_ids(self, prompt: str) -> Ids:
        """Encode a prompt as the processor does: with special tokens, but only one beginning of text."""
        bos = self.tokenizer.bos_token
        return self._tokenise(prompt, add_special_tokens=not (bos and prompt.startswith(bos)))

    def _tokenise(self, text: str, add_special_tokens: bool = False) -> Ids:
        return np.array(self.tokenizer.encode(text, add_special_tokens=add_special_tokens), dtype=np.int64)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )


def _as_list(image_tokens: int | Sequence[int] | None) -> list[int]:
    if image_tokens is None:
        return []
    return list(image_tokens) if isinstance(image_tokens, Sequence) else [image_tokens]


def _own_tokens(tokenizer: Any) -> set[str]:
    """Return the tokens that the tokenizer takes out of a text before it splits the rest: `</s>`,
    `<|im_end|>`, `<SPAN>`.

    Added tokens that look like words or blanks are text (some tokenizers keep runs of spaces so).
    """
    added = tokenizer.added_tokens_decoder.values()
    return {token.content for token in added if token.special or _LIKE_A_TAG.fullmatch(token.content)}


def _any_of(words: Set[str]) -> re.Pattern[str]:
    """Make a pattern that matches any of the words, the longest first; it matches nothing without words."""
    longest_first = sorted(filter(str.strip, words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _tags(tokenizer: Any) -> TokenIds:
    """Return the ids of the three tokens, or ids that never occur if the vocabulary lacks the tokens."""
    try:
        return find_token_ids(tokenizer)
    except ValueError:
        return TokenIds(span=-1, cn=-2, un=-3)
