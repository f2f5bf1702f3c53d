"""Readers of outside text, and hostile texts of many shapes for them: what `doubling.py` measures.

for reader in list_readers(folder):
    reader.read(reader.make(SHAPES["quotes"](64 * KB)))
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

KB = 1 << 10

SHAPES: dict[str, Callable[[int], str]] = {
    "words": lambda n: ("two dogs and a cup on the table. " * (n // 33 + 1))[:n],
    "phrases": lambda n: ("<SPAN>a dog</CN> and " * (n // 21 + 1))[:n],
    "opened tags": lambda n: ("<SPAN>" * (n // 6 + 1))[:n],
    "closed tags": lambda n: ("</CN></UN>" * (n // 10 + 1))[:n],
    "nested tags": lambda n: "<SP" * (n // 6) + "AN>" * (n // 6),
    "tags around tags": lambda n: ("<SP</CN>AN>" * (n // 11 + 1))[:n],
    "opened phrases": lambda n: ("<SPAN>a</" * (n // 9 + 1))[:n],
    "angle brackets": lambda n: "<" * n,
    "closing brackets": lambda n: ">" * n,
    "blanks": lambda n: "a" + " " * (n - 2) + "b",
    "newlines": lambda n: "\n" * (n - 1) + "x",
    "digits": lambda n: "1" * n,
    "thousands": lambda n: ("1,234" * (n // 5 + 1))[:n],
    "number words": lambda n: ("twenty-" * (n // 7 + 1))[:n],
    "points": lambda n: "." * n,
    "letters": lambda n: "a" * n,
    "abbreviations": lambda n: ("e.g. a.b." * (n // 9 + 1))[:n],
    "quotes": lambda n: '"' * n,
    "escaped quotes": lambda n: ('\\"' * (n // 2 + 1))[:n],
    "braces": lambda n: "{" * n,
    "square brackets": lambda n: "[" * n,
    "objects": lambda n: ('{"a": ' * (n // 6 + 1))[:n],
    "broken objects": lambda n: ('{"id": "1", "x": }, ' * (n // 20 + 1))[:n],
    "closed objects": lambda n: ('{"a": 1} ' * (n // 9 + 1))[:n],
    "fences": lambda n: ("```json\n" * (n // 8 + 1))[:n],
    "stars": lambda n: "*" * n,
    "underlines": lambda n: ("_a" * (n // 2 + 1))[:n],
    "list numbers": lambda n: ("1. a\n" * (n // 5 + 1))[:n],
    "addresses": lambda n: ("http://a.b@c." * (n // 13 + 1))[:n],
    "dollars": lambda n: ("$a" * (n // 2 + 1))[:n],
    "backslashes": lambda n: "\\" * n,
    "hyphens": lambda n: ("a-" * (n // 2 + 1))[:n],
    "yes": lambda n: ("yes no " * (n // 7 + 1))[:n],
    "thoughts": lambda n: ("<think>" * (n // 7 + 1))[:n],
    "answer tags": lambda n: ("<answer>a" * (n // 9 + 1))[:n],
    "images": lambda n: ("<image>\n" * (n // 8 + 1))[:n],
    "ends of turn": lambda n: ("</s><|im_end|>" * (n // 14 + 1))[:n],
    "control characters": lambda n: "\x00\x1b" * (n // 2),
    "chinese": lambda n: ("狗。是" * (n // 3 + 1))[:n],
    "surrogates": lambda n: "\ud83d" * n,
    "references": lambda n: "a: &a [" + "*a, " * (n // 4),
    "short lines": lambda n: "x\n" * (n // 2),
    "empty rows": lambda n: "{}\n" * (n // 3),
    "lone digits": lambda n: "1 " * (n // 2),
    "lone letters": lambda n: "a " * (n // 2),
    "listed digits": lambda n: "1," * (n // 2),
    "keys": lambda n: "".join(f"k{i}: {i}\n" for i in range(n // 12)),
}


@dataclass(frozen=True)
class Reader:
    """Something that reads outside text: `read(make(text))` is timed, without `make`."""

    name: str
    read: Callable[[Any], Any]
    make: Callable[[str], Any] = str
    limit: int | None = None  # characters above which it refuses
    growing: bool = False  # reads an answer an id at a time


def list_readers(folder: Path) -> list[Reader]:
    """Every public function that takes outside text; files are written into `folder`."""
    return [*_readers_of_tags(), *_readers_of_data(folder), *_readers_of_replies(folder), *_readers_of_text()]


def _readers_of_tags() -> Iterator[Reader]:
    from reverse.tokens import spans

    for name in ("parse_tags", "find_problems", "remove_tags", "break_tags"):
        yield Reader(f"tokens.{name}", getattr(spans, name))
    yield Reader(
        "tokens.add_tags", lambda parsed: spans.add_tags(parsed.text, parsed.phrases), spans.parse_tags
    )


def _record(text: str) -> dict[str, Any]:
    human = {"from": "human", "value": "<image>\nDescribe this image."}
    return {"id": "1", "image": "a.jpg", "conversations": [human, {"from": "gpt", "value": text}]}


def _many_turns(text: str) -> dict[str, Any]:
    """As many turns as there are pieces of 24 characters."""
    turns = []
    for at in range(0, len(text), 24):
        turns += [
            {"from": "human", "value": f"What is it {at}?"},
            {"from": "gpt", "value": f"It is <SPAN>{text[at : at + 24].replace('<', '')}</CN>."},
        ]
    return {"id": "1", "conversations": turns}


def _readers_of_data(folder: Path) -> Iterator[Reader]:
    from reverse.data.negatives.conversation_turns import make_negative, read_turns
    from reverse.data.records import record_rules, viewer
    from reverse.data.tagging import answer_types, numbers, phrase_candidates, yes_no_words
    from reverse.data.tagging.lexicon import load_lexicon
    from reverse.files import json_scanning, text_reading
    from reverse.training.data.training_hints import choose_hints, said

    def make_negatives(record: dict[str, Any]) -> None:
        for turn in read_turns(record):
            make_negative(turn, 0)

    def stream(before: str, text: str) -> bytes:
        return (before + text).encode("utf-8", "replace")

    def scan(data: bytes) -> list[Any]:
        return list(json_scanning.scan(io.BytesIO(data)))

    page = folder / "page.html"
    yield Reader("data.scan: a list", scan, partial(stream, "["))
    yield Reader("data.scan: lines", scan, partial(stream, ""))
    yield Reader("data.parse_json", lambda text: text_reading.parse_json(text, "x.json"))
    for name, make in (("one answer", _record), ("many turns", _many_turns)):
        yield Reader(f"data.find_faults: {name}", lambda record: list(record_rules.find_faults(record)), make)
        yield Reader(f"data.check_shape: {name}", record_rules.check_shape, make)
        yield Reader(f"data.negatives: {name}", make_negatives, make)
        yield Reader(
            f"data.write_page: {name}", lambda record: viewer.write_page(page, [record], [0], None), make
        )
    yield Reader("data.numbers.find_numbers", numbers.find_numbers)
    yield Reader("data.numbers.is_number", numbers.is_number)
    yield Reader("data.numbers.change_number", lambda text: numbers.change_number(text, Random(0)))
    yield Reader("data.find_yes_no", yes_no_words.find_yes_no)
    yield Reader("data.yes_no_words.find_opposite", yes_no_words.find_opposite)
    yield Reader("data.yes_no_words.guess_language", yes_no_words.guess_language)
    yield Reader("data.find_answer_type", lambda text: answer_types.find_answer_type(text, text, ()))
    yield Reader("data.remove_image_tokens", answer_types.remove_image_tokens)
    yield Reader("data.find_protected", phrase_candidates.find_protected)
    yield Reader("data.trim_span", lambda text: phrase_candidates.trim_span(text, 0, len(text)))
    yield Reader("data.is_skipped", phrase_candidates.is_skipped)
    yield Reader("data.find_surrogate", text_reading.find_surrogate)
    yield Reader("data.replace_surrogates", text_reading.replace_surrogates)
    yield Reader("data.lexicon.find_words", load_lexicon().find_words)
    yield Reader("training.said", lambda text: said(text[: len(text) // 2], text))
    yield Reader(
        "training.choose_hints", lambda text: choose_hints(Random(0), text, pool=text.split(" ")[:200])
    )


def _readers_of_replies(folder: Path) -> Iterator[Reader]:
    from reverse.data.negatives.negative_prompt import read_reply
    from reverse.endpoints.bounded_replies import plain_line, read_completion
    from reverse.evaluation.benchmarks import amber, mme, pope
    from reverse.evaluation.reading import answers as answers_reading
    from reverse.evaluation.reading import markup
    from reverse.evaluation.reading.yes_no import read_strictly
    from reverse.evaluation.scoring import judge

    def completion(text: str) -> bytes:
        return json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    def answers(name: str, text: str) -> Path:
        """A row of an answers file for every 4 kB of the text."""
        path = folder / f"{name}.jsonl"
        lines = (
            json.dumps({"question_id": at, "image_id": "1", "prompt": "?", "text": text[at : at + 4 * KB]})
            for at in range(0, len(text), 4 * KB)
        )
        path.write_text("\n".join(lines) + "\n")
        return path

    def raw(name: str, text: str) -> Path:
        path = folder / f"{name}.jsonl"
        path.write_bytes(text.encode("utf-8", "replace"))
        return path

    yield Reader("replies.read_completion: text", read_completion, completion)
    yield Reader(
        "replies.read_completion: anything", read_completion, lambda text: text.encode("utf-8", "replace")
    )
    yield Reader("replies.plain_line", plain_line)
    yield Reader("negatives.read_reply", lambda text: read_reply(text, [0, 1]))
    yield Reader("judge.find_object", judge.find_object, limit=markup.LONGEST)
    yield Reader("markup.remove_reasoning", markup.remove_reasoning)
    yield Reader("markup.extract_plain_text", markup.extract_plain_text)
    for read in (pope.read_pope, amber.read_amber, mme.read_mme, read_strictly):
        yield Reader(f"yesno.{read.__name__}", read)
    yield Reader("scoring.read_answers: rows", answers_reading.read_answers, partial(answers, "a"))
    yield Reader("scoring.read_answers: anything", answers_reading.read_answers, partial(raw, "b"))
    yield Reader(
        "evaluation.rows: rows", lambda path: list(answers_reading.read_rows(path)), partial(answers, "c")
    )
    yield Reader(
        "evaluation.rows: anything", lambda path: list(answers_reading.read_rows(path)), partial(raw, "d")
    )


@cache
def _processor(style: str) -> Any:
    from experiments.tiny_models import SENTENCES, build_tiny_llava, train_tokenizer
    from reverse.tokens import add_tokens

    model, processor = build_tiny_llava(train_tokenizer(SENTENCES, 600, style=style))
    add_tokens(model, processor)
    return processor


def _readers_of_text() -> Iterator[Reader]:
    import torch

    from reverse.decoding.text.answer_text import read_answer
    from reverse.decoding.text.hints import HintWriter
    from reverse.decoding.text.incremental_detokenizer import (
        IncrementalDetokenizer,
        find_partial_byte_token,
        split_into_pieces,
    )
    from reverse.decoding.text.sentence_ends import find_sentence_ends
    from reverse.decoding.text.stopping import Stops, check_stop_strings
    from reverse.models.inputs.picture_places import check_text, split_at_places
    from reverse.tokens import find_token_ids
    from reverse.training.data.encoding import Encoder, Turn
    from reverse.training.recipes.recipe_yaml import MAX_BYTES, parse_recipe_yaml

    yield Reader(
        "training.parse_recipe_yaml", lambda text: parse_recipe_yaml(text, "x.yaml"), limit=MAX_BYTES
    )
    yield Reader("models.check_text", lambda text: check_text(text, "the prompt"))
    yield Reader(
        "models.split_at_places", lambda text: split_at_places(text, text.count("<image>"), "the prompt")
    )
    yield Reader("decoding.check_stop_strings", check_stop_strings, limit=10_000)
    try:
        yield from _readers_of_words()
    except (ImportError, OSError) as error:  # needs extras and word lists
        print(f"left out, since their data are not here: words of captions and answers ({error})")
    for style in ("bytes", "sentencepiece"):
        processor = _processor(style)
        tokenizer, encoder = processor.tokenizer, Encoder(processor)
        tags, half = find_token_ids(tokenizer), find_partial_byte_token(tokenizer)
        decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        writer = HintWriter(processor)

        ids = partial(_ids, style)

        def show(answer: Sequence[int], decode: Any = decode, half: Any = half, tags: Any = tags) -> None:
            shown = IncrementalDetokenizer(decode, tags, half)
            for token in answer:
                shown.feed([token])

        def stop(answer: Sequence[int], decode: Any = decode, tags: Any = tags) -> None:
            asked = Stops(torch.tensor([0]), decode, tags, strings=("never said", "\n\n\n\n\n#")).after([])
            said: list[int] = []
            for token in answer:
                said.append(token)
                asked(said)

        def end(answer: Sequence[int], decode: Any = decode, tags: Any = tags) -> None:
            find_sentence_ends(split_into_pieces(decode, answer), ids=answer, tags=tags)

        yield Reader(f"decoding.HintWriter ({style})", lambda text, writer=writer: writer.ids([text]))
        yield Reader(
            f"training.Encoder ({style})",
            lambda text, encoder=encoder: encoder.row([Turn("What is it?", text)], None),
        )
        yield Reader(
            f"decoding.read_answer ({style})", lambda said, d=decode, t=tags: read_answer(d, said, t), ids
        )
        yield Reader(f"decoding.IncrementalDetokenizer ({style})", show, ids, growing=True)
        yield Reader(f"decoding.Stops ({style})", stop, ids, growing=True)
        yield Reader(f"decoding.sentence_ends ({style})", end, ids, growing=True)
        repeated = partial(_repeat, half)
        yield Reader(f"decoding.IncrementalDetokenizer, halves ({style})", show, repeated, growing=True)
        yield Reader(f"decoding.sentence_ends, halves ({style})", end, repeated, growing=True)


@lru_cache(maxsize=200)
def _ids(style: str, text: str) -> list[int]:
    """Ids of a text; the same texts are shown to several readers."""
    tokenizer = _processor(style).tokenizer
    return tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)


def _repeat(token: int, text: str) -> list[int]:
    """An answer of halves of characters, as long as the text, whatever it says."""
    return [token] * len(text)


def _readers_of_words() -> list[Reader]:
    from reverse.evaluation.reading import chair_words, english_words

    english_words.prepare_words()
    return [
        Reader("chair.mentions", chair_words.find_mentions, limit=english_words.LONGEST),
        Reader("language.tokens", english_words.tokenize, limit=english_words.LONGEST),
        Reader("language.nouns", english_words.find_nouns, limit=english_words.LONGEST),
    ]
