"""Check with test conversations that an encoder's rows are the ids of the whole rendered conversation.

An encoder joins rows from pieces. That is fast, but right only if the tokenizer encodes a piece as it would
in its place. Tokenizers differ here: SentencePiece puts a "▁" before a text, in some versions before every
text after an added token, in others nowhere, and byte-level tokenizers may add a blank. The processor's ids
of the whole conversation are the reference. A few conversations with all known special cases are encoded both
ways, in a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reverse.errors import DataError
from reverse.tokens import CN, SPAN, UN
from reverse.training.data.record_turns import Turn

if TYPE_CHECKING:
    from reverse.training.data.encoding import Encoder

__all__ = ["check_encoding", "check_several_pictures", "whole_ids"]


def check_encoding(encoder: Encoder) -> None:
    """Compare rows with the ids of whole conversations.

    Raises:
        ValueError: they differ; the message shows where, and the tokens on both sides.
    """
    dog, cups = f"{SPAN}a dog{CN}", f"{SPAN}two cups{UN}"
    hints = ("two cups", "a chair (red)")
    probes = [
        ([Turn("Describe this image.", f"There is {dog} and {cups}", hints)], True),
        ([Turn("Is it?", dog), Turn("And 7", "No.", hints[:1]), Turn("user", f"{SPAN}2{CN}.")], True),
        ([Turn("狗 é", f"{SPAN}狗{CN}。"), Turn("Why\n\nso", "a\n\nb 🦒 "), Turn("(q)", "A")], False),
        ([Turn("q", "  Two.", hints), Turn("q", " Two. \n")], False),
    ]
    for turns, picture in probes:
        _compare(encoder, turns, picture)


def check_several_pictures(encoder: Encoder) -> None:
    """Compare rows about several pictures with the ids of whole conversations, for the first such record.

    A template that cannot show several pictures is no reason to refuse a set that has none of them.

    Raises:
        ValueError: as `check_encoding`.
    """
    dog, hints = f"{SPAN}a dog{CN}", ("two cups", "a chair (red)")
    _compare(
        encoder,
        [
            Turn("Which?", dog, hints, (None, None, "Which?")),
            Turn("Is it?", "No."),
            Turn("One:and two:7?", f"{SPAN}2{UN}", hints, (None, "One:", None, "\nand two:", None, " 7?")),
        ],
        True,
    )


def _compare(encoder: Encoder, turns: Sequence[Turn], picture: bool) -> None:
    """Raise ValueError if the joined pieces of a conversation differ from the whole."""
    try:
        row = [i for pair in encoder.pieces(turns, picture) for ids in pair for i in ids.tolist()]
    except ValueError as error:
        if "cannot be tokenised apart" in str(error):  # such an answer is refused wherever it comes
            return
        raise
    whole = whole_ids(encoder, turns, picture)
    if row == whole[: len(row)] and not encoder.tokenizer.decode(whole[len(row) :]).strip():
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(row, whole, strict=False)) if a != b), min(len(row), len(whole))
    )
    ours, theirs = (encoder.tokenizer.convert_ids_to_tokens(ids[at : at + 4]) for ids in (row, whole))
    raise DataError(
        f"the tokenizer of {encoder.tokenizer.name_or_path or 'this model'!r} does not read the parts of "
        f"a conversation as it reads the whole: at id {at} of {len(whole)} of {turns[0].question!r} and "
        f"what follows, the parts give {ours} and the whole {theirs}. A model trained so would not know "
        "its own prompts: save the tokenizer anew with legacy=False and without add_prefix_space"
    )


def whole_ids(encoder: Encoder, turns: Sequence[Turn], picture: bool) -> list[int]:
    """Encode a conversation that is rendered with its hints and tokenised at once, as the processor does.

    Where the template writes no end of turn, `</s>` stands in its place; a picture is one id. Every question
    ends with a text.
    """
    messages: list[dict[str, Any]] = []
    for k, turn in enumerate(turns):
        texts = turn.content or ((None, turn.question) if picture and k == 0 else (turn.question,))
        content = [{"type": "image"} if text is None else {"type": "text", "text": text} for text in texts]
        content[-1]["text"] += encoder.hints.text(turn.hints)
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
        ]
    tokenizer = encoder.tokenizer
    text = encoder.processor.apply_chat_template(messages, tokenize=False)
    if encoder.end_text not in text.rpartition(turns[-1].answer.strip())[2]:
        text = _with_ends(encoder, messages)
    bos = tokenizer.bos_token
    return list(tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos))))


def _with_ends(encoder: Encoder, messages: list[dict[str, Any]]) -> str:
    """Add the trained end of turn to a conversation whose template writes none (llava-1.5-hf)."""
    answers = [message["content"][0]["text"] for message in messages[1::2]]
    marked = [dict(message) for message in messages]
    for k, message in enumerate(marked[1::2]):
        message["content"] = [{"type": "text", "text": f"\u2983{k}\u2984"}]
    rest = encoder.processor.apply_chat_template(marked, tokenize=False)
    text = ""
    for k, answer in enumerate(answers):
        part, _, rest = rest.partition(f"\u2983{k}\u2984")
        text += (part.lstrip() if k else part) + answer + encoder.end_text
    return text
