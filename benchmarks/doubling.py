"""Whether anything that reads outside text costs more than its length: CPU time for doubling sizes.

    python benchmarks/doubling.py [--out doubling.json] [--only WORD]

Every reader (of tags, answers, replies, records, recipes, hints, stop strings …) is shown hostile texts of
many shapes: first each shape at 16 and 64 kB, then the shapes that grew fastest and took longest at 64 kB
to 1 MB, doubling. The exponent is the slope of CPU time over size, both in logarithms, by least squares: 1 is
linear, 2 quadratic; 1.2 allows for caches and logarithms. Each time is the best of three, repeated until it
takes 20 ms, so that what a call costs by itself does not blur small sizes. A reader that refuses above a
stated limit is bounded: it is measured up to that limit, and its refusal at twice the limit is timed. Texts
of answers while they are made (streams, sentence ends, stops) are read an id at a time, at 2 to 32 kB.

`measure()` gives what the file holds; `doubling_exponent_max` is the largest exponent.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core

KB = 1 << 10
SIZES = tuple(64 * KB << k for k in range(5))
GROWING = tuple(2 * KB << k for k in range(5))  # of answers that are read an id at a time
SCREEN = (16 * KB, 64 * KB)
MOST = 1.2  # the exponent that is claimed not to be passed
LONGEST = 20.0  # seconds of one call above which no larger size is tried

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

    for name in ("parse", "problems", "strip", "break_tags"):
        yield Reader(f"tokens.{name}", getattr(spans, name))
    yield Reader("tokens.render", lambda parsed: spans.render(parsed.text, parsed.phrases), spans.parse)


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
    from reverse.data import answers, faults, numbers, phrasing, records, scanning, viewing, yesno
    from reverse.data.lexicon import load_lexicon
    from reverse.data.negatives.turns import make_negative, turns_of
    from reverse.data.text_files import parse_json
    from reverse.training.hints import choose_hints, said

    def make_negatives(record: dict[str, Any]) -> None:
        for turn in turns_of(record):
            make_negative(turn, 0)

    def stream(before: str, text: str) -> bytes:
        return (before + text).encode("utf-8", "replace")

    def scan(data: bytes) -> list[Any]:
        return list(scanning.scan(io.BytesIO(data)))

    page = folder / "page.html"
    yield Reader("data.scan: a list", scan, partial(stream, "["))
    yield Reader("data.scan: lines", scan, partial(stream, ""))
    yield Reader("data.parse_json", lambda text: parse_json(text, "x.json"))
    for name, make in (("one answer", _record), ("many turns", _many_turns)):
        yield Reader(f"data.faults: {name}", lambda record: list(faults.faults(record)), make)
        yield Reader(f"data.validate: {name}", records.validate, make)
        yield Reader(f"data.negatives: {name}", make_negatives, make)
        yield Reader(
            f"data.write_page: {name}", lambda record: viewing.write_page(page, [record], [0], None), make
        )
    yield Reader("data.numbers.find", numbers.find)
    yield Reader("data.numbers.is_number", numbers.is_number)
    yield Reader("data.numbers.change", lambda text: numbers.change(text, Random(0)))
    yield Reader("data.yesno.find", yesno.find)
    yield Reader("data.yesno.flip", yesno.flip)
    yield Reader("data.yesno.guess_language", yesno.guess_language)
    yield Reader("data.answer_type", lambda text: answers.answer_type(text, text, ()))
    yield Reader("data.plain_question", answers.plain_question)
    yield Reader("data.protected", phrasing.protected)
    yield Reader("data.trimmed", lambda text: phrasing.trimmed(text, 0, len(text)))
    yield Reader("data.is_skipped", phrasing.is_skipped)
    yield Reader("data.half_pair", records.half_pair)
    yield Reader("data.whole_text", records.whole_text)
    yield Reader("data.lexicon.find", load_lexicon().find)
    yield Reader("training.said", lambda text: said(text[: len(text) // 2], text))
    yield Reader(
        "training.choose_hints", lambda text: choose_hints(Random(0), text, pool=text.split(" ")[:200])
    )


def _readers_of_replies(folder: Path) -> Iterator[Reader]:
    from reverse.data.negatives.prompt import read_reply
    from reverse.data.replies import plain_line, read_completion
    from reverse.evaluation import reading
    from reverse.evaluation.scoring import judge, markup, rows, yesno

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
    yield Reader("judge.object_in", judge.object_in, limit=markup.LONGEST)
    yield Reader("markup.without_reasoning", markup.without_reasoning)
    yield Reader("markup.plain", markup.plain)
    for name in ("read_pope", "read_amber", "read_mme", "strict"):
        yield Reader(f"yesno.{name}", getattr(yesno, name))
    yield Reader("scoring.read_answers: rows", rows.read_answers, partial(answers, "a"))
    yield Reader("scoring.read_answers: anything", rows.read_answers, partial(raw, "b"))
    yield Reader("evaluation.rows: rows", lambda path: list(reading.rows_of(path)), partial(answers, "c"))
    yield Reader("evaluation.rows: anything", lambda path: list(reading.rows_of(path)), partial(raw, "d"))


@cache
def _processor(style: str) -> Any:
    from reverse.models.tiny import SENTENCES, build_tiny_llava, train_tokenizer
    from reverse.tokens import add_tokens

    model, processor = build_tiny_llava(train_tokenizer(SENTENCES, 600, style=style))
    add_tokens(model, processor)
    return processor


def _readers_of_text() -> Iterator[Reader]:
    import torch

    from reverse.decoding.answer_text import read_answer
    from reverse.decoding.rewriting import HintWriter
    from reverse.decoding.sentences import sentence_ends, token_pieces
    from reverse.decoding.shown import ShownText, half_character
    from reverse.decoding.stopping import Stops, stop_texts
    from reverse.models.places import check_text, split_at_places
    from reverse.tokens import token_ids
    from reverse.training.encoding import Encoder, Turn
    from reverse.training.recipe_yaml import MAX_BYTES, parse_recipe_yaml

    yield Reader(
        "training.parse_recipe_yaml", lambda text: parse_recipe_yaml(text, "x.yaml"), limit=MAX_BYTES
    )
    yield Reader("models.check_text", lambda text: check_text(text, "the prompt"))
    yield Reader(
        "models.split_at_places", lambda text: split_at_places(text, text.count("<image>"), "the prompt")
    )
    yield Reader("decoding.stop_texts", stop_texts, limit=10_000)
    try:
        yield from _readers_of_words()
    except (ImportError, OSError) as error:  # needs extras and word lists
        print(f"left out, since their data are not here: words of captions and answers ({error})")
    for style in ("bytes", "sentencepiece"):
        processor = _processor(style)
        tokenizer, encoder = processor.tokenizer, Encoder(processor)
        tags, half = token_ids(tokenizer), half_character(tokenizer)
        decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        writer = HintWriter(processor)

        def ids(text: str, tokenizer: Any = tokenizer) -> list[int]:
            return tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)

        def show(answer: Sequence[int], decode: Any = decode, half: Any = half, tags: Any = tags) -> None:
            shown = ShownText(decode, half, tags=tags)
            for token in answer:
                shown.feed([token])

        def stop(answer: Sequence[int], decode: Any = decode, tags: Any = tags) -> None:
            asked = Stops(torch.tensor([0]), decode, tags, strings=("never said", "\n\n\n\n\n#")).after([])
            said: list[int] = []
            for token in answer:
                said.append(token)
                asked(said)

        def end(answer: Sequence[int], decode: Any = decode, tags: Any = tags) -> None:
            sentence_ends(token_pieces(decode, answer), ids=answer, tags=tags)

        yield Reader(f"decoding.HintWriter ({style})", lambda text, writer=writer: writer.ids([text]))
        yield Reader(
            f"training.Encoder ({style})",
            lambda text, encoder=encoder: encoder.row([Turn("What is it?", text)], None),
        )
        yield Reader(
            f"decoding.read_answer ({style})", lambda said, d=decode, t=tags: read_answer(d, said, t), ids
        )
        yield Reader(f"decoding.ShownText ({style})", show, ids, growing=True)
        yield Reader(f"decoding.Stops ({style})", stop, ids, growing=True)
        yield Reader(f"decoding.sentence_ends ({style})", end, ids, growing=True)
        repeated = partial(_repeat, half)
        yield Reader(f"decoding.ShownText, halves ({style})", show, repeated, growing=True)
        yield Reader(f"decoding.sentence_ends, halves ({style})", end, repeated, growing=True)


def _repeat(token: int, text: str) -> list[int]:
    """An answer of halves of characters, as long as the text, whatever it says."""
    return [token] * len(text)


def _readers_of_words() -> list[Reader]:
    from reverse.evaluation.scoring import chair_words, language

    language.prepare()
    return [
        Reader("chair.mentions", chair_words.mentions),
        Reader("language.tokens", language.tokens),
        Reader("language.nouns", language.nouns),
    ]


# ---------------------------------------------------------------------- measuring
def time_call(reader: Reader, text: str, best_of: int = 3) -> float:
    """CPU seconds of one call, the best of a few; a refusal (ValueError) counts as any other answer.

    With `best_of=0` a rough figure of a single call.
    """
    given = reader.make(text)
    gc.collect()

    def once() -> float:
        gc.disable()  # as timeit does: collections come in steps that depend on what else is in memory
        began = time.process_time()
        try:
            reader.read(given)
        except (ValueError, TypeError):
            pass
        except Exception as error:  # BadReply and its like: errors of the library's own are answers too
            if not type(error).__module__.startswith("reverse."):
                raise
        spent = time.process_time() - began
        gc.enable()
        return spent

    first = once()
    if first > 2.0 or (best_of == 0 and first > 0.002):
        return first
    target = 0.02 if best_of else 0.002  # seconds
    loops = max(1, min(1000, math.ceil(target / max(first, 1e-6))))
    times = []
    for _ in range(max(best_of, 1)):
        times.append(sum(once() for _ in range(loops)) / loops)
    return min([first, *times] if loops == 1 else times)


def slope(seconds: dict[int, float]) -> float:
    """Least squares of log(seconds) over log(size)."""
    xs = [math.log2(size) for size in seconds]
    ys = [math.log2(max(value, 1e-7)) for value in seconds.values()]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def measure_shape(reader: Reader, shape: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Seconds at every size, and their exponent."""
    seconds: dict[int, float] = {}
    for size in sizes:
        seconds[size] = time_call(reader, SHAPES[shape](size))
        if seconds[size] > LONGEST:
            break
    exponent = slope(seconds) if len(seconds) > 1 else math.inf
    return {
        "reader": reader.name,
        "shape": shape,
        "exponent": round(exponent, 3),
        "seconds": {str(size): round(value, 6) for size, value in seconds.items()},
    }


def choose_shapes(reader: Reader, sizes: tuple[int, int]) -> list[str]:
    """The shape whose time grew fastest between two sizes, and the one that took longest."""
    growth: dict[str, float] = {}
    longest: dict[str, float] = {}
    for name, shape in SHAPES.items():
        small = time_call(reader, shape(sizes[0]), 0)
        large = LONGEST if small > LONGEST / 4 else time_call(reader, shape(sizes[1]), 0)
        longest[name] = large
        if large > 1e-4:  # below that a clock's noise grows fastest
            growth[name] = math.log(large / max(small, 1e-7)) / math.log(sizes[1] / sizes[0])
    fastest = sorted(growth, key=growth.__getitem__, reverse=True)[:2]
    return list(dict.fromkeys([*fastest, max(longest, key=longest.__getitem__)]))


def measure(only: str = "", say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Every reader at doubling sizes, by decreasing exponent; `doubling_exponent_max` is the largest."""
    cases: list[dict[str, Any]] = []
    bounded: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for reader in list_readers(Path(folder)):
            if only not in reader.name:
                continue
            sizes = GROWING if reader.growing else SIZES
            if reader.limit is not None:
                sizes = tuple(reader.limit >> (4 - k) for k in range(5))
                seconds = time_call(reader, SHAPES["words"](2 * reader.limit))
                bounded.append(
                    {"reader": reader.name, "limit": reader.limit, "refusal_seconds": round(seconds, 6)}
                )
            screen = SCREEN if sizes == SIZES else (sizes[0], sizes[2])
            for shape in choose_shapes(reader, screen):
                case = measure_shape(reader, shape, sizes)
                case["slowest_seconds"] = max(case["seconds"].values())
                cases.append(case)
                say(
                    f"{case['exponent']:6.2f}  {case['slowest_seconds']:9.4f} s at "
                    f"{int(list(case['seconds'])[-1]) // KB:5d} kB  {reader.name}: {shape}"
                )
    cases.sort(key=lambda case: case["exponent"], reverse=True)
    return {
        "benchmark": "doubling",
        "cpu": platform.processor() or platform.machine(),
        "readers": len({case["reader"] for case in cases}),
        "shapes": len(SHAPES),
        "doubling_exponent_max": cases[0]["exponent"] if cases else None,
        "above": [case for case in cases if case["exponent"] > MOST],
        "bounded": bounded,
        "cases": cases,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON there")
    parser.add_argument("--only", default="", help="readers whose name holds this")
    options = parser.parse_args()
    print("exponent  CPU seconds             reader: shape")
    result = measure(options.only, partial(print, flush=True))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key not in ("cases", "above")}))


if __name__ == "__main__":
    main()
