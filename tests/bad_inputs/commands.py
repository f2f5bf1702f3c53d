"""Wrong options, numbers, paths and models of every command."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from tests.bad_inputs.judging import Entry
from tests.bad_inputs.world import World

INF = math.inf
# command; option; whole numbers only; least; most; whether the least itself is allowed
NUMBERS: tuple[tuple[str, str, bool, float, float, bool], ...] = (
    ("generate", "--threshold", False, 0, 1, False),
    ("generate", "--max-new-tokens", True, 1, INF, True),
    ("generate", "--hints", True, 0, INF, True),
    ("generate", "--seed", True, -(2**63), 2**63 - 1, True),
    ("generate-sample", "--temperature", False, 0, INF, False),
    ("demo", "--threshold", False, 0, 1, False),
    ("eval", "--threshold", False, 0, 1, False),
    ("eval", "--max-sequences", True, 1, INF, True),
    ("eval", "--window", True, 1, INF, True),
    ("eval", "--limit", True, 1, INF, True),
    ("eval", "--decode-seeds", True, 1, 1, True),
    ("eval", "--max-new-tokens", True, 1, INF, True),
    ("eval", "--hints", True, 0, INF, True),
    ("eval", "--candidates", True, 1, 64, True),
    ("eval", "--scenes", True, 1, 1, True),
    ("eval", "--seed", True, -(2**63), 2**63 - 1, True),
    ("eval-sample", "--temperature", False, 0, INF, False),
    ("score", "--rounds", True, 0, 1000, True),
    ("score", "--concurrency", True, 1, INF, True),
    ("score", "--timeout", False, 1, INF, True),
    ("score", "--price-in", False, 0, INF, True),
    ("score", "--price-out", False, 0, INF, True),
    ("score", "--seed", True, 0, INF, True),
    ("compare", "--rounds", True, 1, 1000, True),
    ("compare", "--permutations", True, 1, 1000, True),
    ("compare", "--level", False, 0, 1, False),
    ("compare", "--seed", True, 0, INF, True),
    ("sweep", "--bins", True, 1, 1000, True),
    ("sweep", "--rounds", True, 1, 1000, True),
    ("sweep", "--seed", True, 0, INF, True),
    ("sweep-model", "--count", True, 1, 1, True),
    ("sweep-model", "--batch-size", True, 1, 64, True),
    ("sweep-model", "--decode", False, 0, 1, False),
    ("calibrate", "--risk", False, 0, 1, False),
    ("calibrate", "--confidence", False, 0, 1, False),
    ("calibrate", "--resplits", True, 1, 1000, True),
    ("calibrate", "--seed", True, 0, INF, True),
    ("report", "--examples", True, 0, INF, True),
    ("report", "--rounds", True, 1, 1000, True),
    ("report", "--seed", True, 0, INF, True),
    ("data-scenes", "--count", True, 1, 10, True),
    ("data-scenes", "--workers", True, 1, 1, True),
    ("data-tag", "--workers", True, 1, 1, True),
    ("data-tag", "--batch", True, 1, 1000, True),
    ("data-tag", "--limit", True, 1, INF, True),
    ("data-negatives", "--limit", True, 1, INF, True),
    ("data-negatives", "--concurrency", True, 1, INF, True),
    ("data-negatives", "--price-in", False, 0, INF, True),
    ("data-negatives", "--timeout", False, 1, INF, True),
    ("data-subsample", "--n", True, 1, 3, True),
    ("data-view", "--n", True, 1, INF, True),
    ("data-view", "--index", True, 0, 2, True),
    ("data-check", "--token-sample", True, 0, INF, True),
)
BASES = {
    "generate": "generate tiny-llava --image {kitchen} --max-new-tokens 2",
    "generate-sample": "generate tiny-llava --image {kitchen} --max-new-tokens 2 --do-sample",
    "demo": "demo",
    "eval": "eval pope --model tiny-llava --data scenes --scenes 1 --limit 1 --out {new}",
    "eval-sample": "eval pope --model tiny-llava --data scenes --scenes 1 --limit 1 --out {new} --do-sample",
    "score": "score {pope} --truth {scenes} --partial",
    "compare": "compare {scored} {scored} --permutations 99 --rounds 99",
    "sweep": "sweep {chair} --out {new} --rounds 20",
    "sweep-model": "sweep --model tiny-llava --out {new} --rounds 20 --count 1",
    "calibrate": "calibrate {chair} --resplits 5",
    "report": "report {answers} --out {new} --rounds 20",
    "data-scenes": "data scenes {new}/scenes",
    "data-tag": "data tag {records} {new}.json",
    "data-negatives": "data negatives {records} {new}.json",
    "data-subsample": "data subsample {records} {new}.json",
    "data-view": "data view {records} --images {scenes}",
    "data-check": "data check {records} --tokenizer tiny-llava",
}
TRIED = ("0", "-1", "1.5", "nan", "inf", "-inf", "1e30", "abc", "", "1,5", "99999999999999999999999", "0x10")
OPTIONAL = {"--decode"}  # a list of numbers, which may be empty

# (words, a text that the message must hold); {bad} stands for the same text
WORDS: tuple[tuple[str, str], ...] = (
    ("generate {missing} --image {kitchen}", "nothing.json"),
    ("generate ␣ --image {kitchen}", "empty"),
    ("generate {notes} --image {kitchen}", "notes.txt"),
    ("generate {empty_folder} --image {kitchen}", "empty"),
    ("generate {untagged} --image {kitchen}", "<SPAN>"),
    ("generate a/b/c --image {kitchen}", "a/b/c"),
    ("generate https://example.org/model --image {kitchen}", "https://example.org/model"),
    ("generate tiny-lava --image {kitchen}", "tiny-lava"),
    ("generate tiny-llava --image nothing.png", "nothing.png"),
    ("generate tiny-llava --image {empty_folder}", "empty"),
    ("generate tiny-llava --image {notes}", "notes.txt"),
    ("generate tiny-llava --image {records}", "instruct.json"),
    ("generate tiny-llava --image https://example.org/a.png", "https://example.org/a.png"),
    ("generate tiny-llava --image data:image/png;base64,AAAA", "image"),
    ("generate tiny-llava --image {kitchen} --prompt ␣", "empty"),
    ("generate tiny-llava --image {kitchen} --prompt <image><image>", "2 image placeholders"),
    ("generate tiny-llava --image {kitchen} --mode resampel", "resampel"),
    ("generate tiny-llava --image {kitchen} --on-exhausted bets", "bets"),
    ("generate tiny-llava --image {kitchen} --dtype float8", "float8"),
    ("generate tiny-llava --image {kitchen} --dtype int8", "int8"),
    ("generate tiny-llava --image {kitchen} --device tpu", "tpu"),
    ("generate tiny-llava --image {kitchen} --device cuda:99", "cuda:99"),
    ("generate tiny-llava --image {kitchen} --device cpu:x", "cpu:x"),
    ("generate tiny-llava --image {kitchen} --temperature 0.5", "0.5"),
    ("generate tiny-llava --image {kitchen} --treshold 0.5", "--treshold"),
    ("generate tiny-llava --image", "--image"),
    ("generate", "model"),
    ("generte tiny-llava", "generte"),
    ("data chek x", "chek"),
    ("tokens ad x y", "ad"),
    ("demo --model {missing}", "nothing.json"),
    ("demo --model {untagged}", "<SPAN>"),
    ("tokens add {missing} {new}", "nothing.json"),
    ("tokens add {empty_folder} {new}", "empty"),
    ("tokens add {untagged} {busy_folder}", "busy"),
    ("tokens add {untagged} {notes}", "notes.txt"),
    ("tokens add {untagged} {new} --init ␣", "init"),
    ("tokens add {untagged} {new} --seed abc", "abc"),
    ("tokens add {untagged} {new} --seed 99999999999999999999999", "99999999999999999999999"),
    ("merge {missing} {new}", "nothing.json"),
    ("merge {empty_folder} {new}", "empty"),
    ("merge {notes} {new}", "notes.txt"),
    ("merge {untagged} {new}", "untagged"),
    ("merge {untagged} {new} --dtype float99", "float99"),
    ("convert {missing} {new}", "nothing.json"),
    ("convert {empty_folder} {new}", "empty"),
    ("convert {notes} {new}", "notes.txt"),
    ("convert {untagged} {new}", "untagged"),
    ("convert {untagged} {new} --dtype float99", "float99"),
    ("eval", "benchmark"),
    ("eval pope", "--model"),
    ("eval pope --model tiny-llava", "--out"),
    ("eval poppe --model tiny-llava --data scenes --out {new}", "poppe"),
    ("eval pope --model {missing} --data scenes --scenes 1 --out {new}", "nothing.json"),
    ("eval pope --model {untagged} --data scenes --scenes 1 --out {new}", "<SPAN>"),
    ("eval pope --model tiny-llava --data {empty_folder} --out {new}", "empty"),
    ("eval pope --model tiny-llava --data {missing} --out {new}", "nothing.json"),
    ("eval pope --model tiny-llava --data {notes} --out {new}", "notes.txt"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --out {notes}", "notes.txt"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --out {notes}/x", "notes.txt"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --split tset --out {new}", "tset"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --mode resampel --out {new}", "resampel"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --on-exhausted bets --out {new}", "bets"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --device tpu --out {new}", "tpu"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --dtype float99 --out {new}", "float99"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --temperature 2 --out {new}", "2"),
    ("eval pope --model tiny-llava --data scenes --scenes 1 --ray 0 --out {new}", "0"),
    ("eval --where poppe", "poppe"),
    ("score {missing} --truth {scenes}", "nothing.json"),
    ("score {pope} --truth {missing}", "nothing.json"),
    ("score {pope} --truth {empty_folder}", "empty"),
    ("score {pope} --truth {notes}", "notes.txt"),
    ("score {pope} --truth {scenes} --benchmark poppe", "poppe"),
    ("score {pope} --truth {scenes} --benchmark chair", "chair"),
    ("score {pope} --truth {scenes} --benchmark mme", "mme"),
    ("score {chair} --truth {scenes} --benchmark amber-d", "amber-d"),
    ("score {chair} --truth {scenes} --benchmark mmhal", "REVERSE_JUDGE_BASE_URL"),
    ("score {records} --truth {scenes}", "instruct.json"),
    ("score {kitchen} --truth {scenes}", ".png"),
    ("score {pope} --truth {scenes} --save {notes}/x.json", "notes.txt"),
    ("score {pope} --truth {scenes} --save {empty_folder}", "empty"),
    ("compare {missing} {scored}", "nothing.json"),
    ("compare {scored} {missing}", "nothing.json"),
    ("compare {scored} {pope}", "pope.jsonl"),
    ("compare {scored} {records}", "instruct.json"),
    ("compare {scored} {scored} --metric accurcy", "accurcy"),
    ("compare {scored} {scored} --method bcaa", "bcaa"),
    ("compare {scored} {scored} --out {notes}", "notes.txt"),
    ("compare {scored}", "second"),
    ("sweep", "--model"),
    ("sweep {missing} --out {new}", "nothing.json"),
    ("sweep {pope} --out {new} --truth scnes", "scnes"),
    ("sweep {chair} --out {new} --truth chair:{missing}", "nothing.json"),
    ("sweep {chair} --out {new} --truth chair:{empty_folder}", "empty"),
    ("sweep {chair} --out {new} --truth amber-g:{scenes}", "amber-g"),
    ("sweep {chair} --out {notes}", "notes.txt"),
    ("sweep {chair} --out {new} --decode 0.5", "--model"),
    ("sweep --model tiny-llava --decode 0.5;0.1 --count 1 --out {new}", "0.5;0.1"),
    ("sweep --model {missing} --count 1 --out {new}", "nothing.json"),
    ("sweep --model tiny-llava --count 1 --split tset --out {new}", "tset"),
    ("sweep --model tiny-llava --count 1 --device tpu --out {new}", "tpu"),
    ("calibrate {missing}", "nothing.json"),
    ("calibrate {chair} --test {missing}", "nothing.json"),
    ("calibrate {chair} --rule beting", "beting"),
    ("calibrate {chair} --truth scnes", "scnes"),
    ("calibrate {chair} --write", "--model"),
    ("calibrate {chair} --decode", "--model"),
    ("calibrate {chair} --write --model {missing} --risk 0.9 --confidence 0.5", "nothing.json"),
    ("calibrate {chair} --out {notes}", "notes.txt"),
    ("report {missing}", "nothing.json"),
    ("report {empty_folder} --out {new}", "empty"),
    ("report {notes} --out {new}", "notes.txt"),
    ("report {answers} --out {notes}", "notes.txt"),
    ("report {answers} --out {new} --method bcaa", "bcaa"),
    ("report {answers} --out {new} --images {missing}", "nothing.json"),
    ("report", "folders"),
    ("data scenes {notes}", "notes.txt"),
    ("data scenes {busy_folder}", "notes.txt"),
    ("data scenes {new} --split tset", "tset"),
    ("data scenes {new} --seed abc", "abc"),
    ("data scenes {notes}/x", "notes.txt"),
    ("data import {missing} {new}", "nothing.json"),
    ("data import {records} {notes}", "notes.txt"),
    ("data import {records} {busy_folder}", "busy"),
    ("data import {empty_folder} {new}", "empty"),
    ("data import {missing} {new} --as r3v", "nothing.json"),
    ("data import {empty_folder} {new} --as r3v", "empty"),
    ("data import {records} {new} --as r4v", "r4v"),
    ("data import {records} {new} --as r3v", "item 0"),
    ("data import {records} {notes} --as llava-cot", "notes.txt"),
    ("data import {records} {new} --root /data", "--root"),
    ("data export {missing} {new}.json --as r3v", "nothing.json"),
    ("data export {notes} {new}.json --as r3v", "notes.txt"),
    ("data export {missing} {new}.json --as r4v", "r4v"),
    ("data check {missing}", "nothing.json"),
    ("data check {empty_folder}", "empty"),
    ("data check {records} --images {missing}", "nothing.json"),
    ("data check {records} --images {notes}", "notes.txt"),
    ("data check {records} --tokenizer {missing}", "nothing.json"),
    ("data check {records} --tokenizer {empty_folder}", "empty"),
    ("data subsample {missing} {new}.json", "nothing.json"),
    ("data subsample {records} {records} --n 1", "instruct.json"),
    ("data subsample {records} {notes}/x.json --n 1", "notes.txt"),
    ("data subsample {records} {new}.json --n 999999", "999"),
    ("data subsample {records} {new}.json --n 1 --plain {missing} {new}.json", "nothing.json"),
    ("data view {missing}", "nothing.json"),
    ("data view {records} --images {missing}", "nothing.json"),
    ("data view {records} --images {scenes} --id nobody", "nobody"),
    ("data view {records} --images {scenes} --html {notes}/x.html", "notes.txt"),
    ("data tag {missing} {new}.json", "nothing.json"),
    ("data tag {records} {new}.txt", ".txt"),
    ("data tag {records} {records}", "instruct.json"),
    ("data tag {records} {notes}/x.json", "notes.txt"),
    ("data negatives {missing} {new}.json", "nothing.json"),
    ("data negatives {records} {new}.txt", ".txt"),
    ("data negatives {records} {records}", "instruct.json"),
    ("data negatives {records} {notes}/x.json", "notes.txt"),
    ("data negatives {records} {new}.json --by lexikon", "lexikon"),
    ("data negatives {records} {new}.json --by llm", "REVERSE_LLM_BASE_URL"),
    ("data language --wheels {missing}", "nothing.json"),
    ("data language --wheels {notes}", "notes.txt"),
    ("train", "recipe"),
    ("train {missing}", "nothing.json"),
    ("train {notes}", "notes.txt"),
    ("train {empty_folder}", "empty"),
    ("train llava_v15_lorra", "llava_v15_lorra"),
    ("train {recipe} --set optim.lr", "optim.lr"),
    ("train {recipe} --set optim.rl=1", "optim.rl"),
    ("train {recipe} --set =1", "''"),
    ("train {recipe} --set model={missing}", "nothing.json"),
    ("train {recipe} --set data.records={missing}", "nothing.json"),
    ("train {recipe} --set data.images={missing}", "nothing.json"),
    ("train {recipe} --set output={notes}", "notes.txt"),
    ("train {recipe} --set output={busy_folder}", "busy"),
    ("train {recipe} --set output={notes}/x", "notes.txt"),
)
# Words that look odd and are right.
GOOD: tuple[str, ...] = (
    "generate tiny-llava --image file://{kitchen} --max-new-tokens 2",
    "generate tiny-llava --image {kitchen} --image {kitchen} --max-new-tokens 2",
    "generate tiny-llava --image {kitchen} --prompt 狗在哪里？🦒 --max-new-tokens 2",
    "generate tiny-llava --image {kitchen} --prompt <SPAN>dog</UN> --max-new-tokens 2",
    "eval --where",
    "train --list",
    "train {recipe} --show",
    "data view {records} --images {scenes} --n 1",
    "data subsample {records} {new}.jsonl --n 1",
)
ACCEPTED_OR_NOT = {  # what either answer is right for
    "tokens add {untagged} {new} --seed 99999999999999999999999",
    "data check {records} --tokenizer {empty_folder}",
    "data subsample {records} {new}.json --n 999999",
    "data language --wheels {missing}",
    "data language --wheels {notes}",
}


def run(words: str, world: World) -> Any:
    return world.run(words, REVERSE_JUDGE_BASE_URL=None, REVERSE_LLM_BASE_URL=None)


def entries() -> Iterator[Entry]:
    for base, option, whole, least, most, closed in NUMBERS:
        for text in TRIED:
            expected = _expected(text, option, whole, least, most, closed)
            if expected is not None:
                shown = text or "␣␣"
                words = f"{BASES[base]} {option}={text}"
                yield Entry(
                    f"{base} {option} {shown}", partial(run, words), _spellings(text, option), expected
                )
    for words, value in WORDS:
        expected = "either" if words in ACCEPTED_OR_NOT else "refused"
        yield Entry(words, partial(run, words), (value,), expected)
    for words in GOOD:
        yield Entry(words, partial(run, words), (), "good")


def _expected(text: str, option: str, whole: bool, least: float, most: float, closed: bool) -> Any:
    """What is right for a number; None where only trying it would take too long."""
    if text == "" and option in OPTIONAL:
        return "good"
    try:
        value = float(int(text)) if whole else float(text)
    except ValueError:
        if not whole and option in OPTIONAL and "," in text:
            return "refused"
        return "refused"
    if value == 99999999999999999999999.0 and most is INF:
        return "either"  # more than anyone needs; a limit would be as right
    if math.isnan(value) or math.isinf(value):
        return "refused"
    inside = least <= value <= most if closed else least < value < most or value == most
    if inside:
        return "either" if value in (1e30,) else "good"
    return "refused"


def _spellings(text: str, option: str) -> tuple[str, ...]:
    if text == "":
        return ("''", option, '""')
    found = [text, *(part for part in text.split(",") if option in OPTIONAL)]
    with suppress(ValueError, OverflowError):
        found += [repr(float(text)), f"{float(text):g}", str(int(float(text)))]
    return tuple(found)
