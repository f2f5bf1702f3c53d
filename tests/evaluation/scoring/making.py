"""Sentences and answers made for the tests: templates, the metrics' own words, mutations."""

import json
import random

from reverse.evaluation.reading.chair_words import _OBJECT_OF, _PAIRS

WORDS = sorted(_OBJECT_OF)
PAIRS = sorted(_PAIRS)
OTHERS = ("tree", "sky", "wall", "plate", "grass", "water", "shirt", "animal", "glass", "light", "motor bike",
          "cheesecake", "iPhone", "stove top oven", "toilet seat", "seat of the toilet", "bow tie",
          "baby elephant", "adult dogs", "passenger train", "passengers on a train", "train tracks",
          "home plate", "sports balls", "wine glasses", "hot dogs", "teddy bears")  # fmt: skip
VERBS = ("skiing", "boating", "surfing", "riding", "sitting on", "carrying", "biking past", "watching",
         "trained by", "ships", "cooking", "seated near", "bowled", "cupping", "couches")  # fmt: skip
TEMPLATES = (
    "A {a} and two {b}s are {v} near the {c}.",
    "The image features a {a}, {b}, and {c} in front of a {d}.",
    "There are several {a}s; one {b} is {v} a {c}! Is it a {d}?",
    "a {a} {v} the {b} with {c}s",
    "In this photo (taken at 3.5 p.m.), the {a}'s {b} isn't {v}... the {c} cannot be seen.",
    "He's {v} the {a}. She'd {v} \"{b}\" - a {c}/{d} -- on No. 4 St. James.",
    "{a} {b} {c} {d}",
    "The {a} is {v}, and the {b} {v} it. Additionally, there are {c}s and {d}s, all orange.",
    "Two {a}s: one {b}, one black-and-white {c}; the {d}s' owners (3 of them) wait.",
    "Gonna see the {a}? Lemme show you a {b}, {c}es and {d}ies.",
)  # fmt: skip


def noun(rng):
    word = rng.choice(rng.choice((WORDS, WORDS, PAIRS, OTHERS)))
    if rng.random() < 0.15:
        word = plural(word)
    return word


def plural(word):
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("fe"):
        return word[:-2] + "ves"
    if word.endswith("man"):
        return word[:-2] + "en"
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


def mutated(text, rng):
    """Capitals, odd spaces, doubled or missing punctuation, hyphens, curly quotes, letters lost."""
    kind = rng.randrange(12)
    at = rng.randrange(len(text))
    return {
        0: text.upper(),
        1: text.title(),
        2: text.replace(" ", "  ", 2),
        3: text.replace(". ", ".\n\n", 1),
        4: text.replace(" ", "-", 1),
        5: text.replace("'", "’"),
        6: text.rstrip(".") + " ...",
        7: text[:at] + rng.choice(",;:!?.\t%*()[]\u00a0é") + text[at:],
        8: text[:at] + text[at + 1 :],
        9: " " + text + " ",
        10: text.replace(".", " . "),
        11: text,
    }[kind]


def sentence(rng):
    names = {key: noun(rng) for key in "abcd"}
    text = rng.choice(TEMPLATES).format(**names, v=rng.choice(VERBS))
    return mutated(text, rng)


def caption(rng):
    if rng.random() < 0.02:
        return rng.choice(("", " ", "...", "seat", "toilet seat", "the seat of a toilet", "a" * 300))
    return " ".join(sentence(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))


def captions(count, seed):
    rng = random.Random(seed)
    return [caption(rng) for _ in range(count)]


YES_NO = (
    "Yes", "No", "yes.", "no.", "No, there is not.", "No,there is", "Yes, there is a dog. No cat though.",
    "There is a dog.", "There is not a dog in the image.", "There isn't a dog.", "His eyes are blue.",
    "It is snowing.", "The nose of the dog", "Not at all", "I do not know", "", " ", "...", "\n",
    "Nothing like that", "YES", "NO", "Yes\tand no", "  Yes", "   no", "Unable to answer directly.",
    "none of them", "Certainly! Yes, it is.", "Well. No.", "no dog, yes cat", "Yes/No", "nope", "yeah",
    "There are no dogs", "The answer is yes", "the answer is no.", "Yesterday", "Noon", "don’t think so",
    "cannot tell", "A cat. It has no tail.", "maybe", "Yes." * 40, "5", "¿sí?",
)  # fmt: skip


def yes_no(rng):
    text = rng.choice(YES_NO)
    kind = rng.randrange(6)
    return (text, text.lower(), text + " indeed", text + ".", " " + text, text.replace(".", ","))[kind]


def write_answers(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(question, text, image="", prompt="", **more):
    return {"question_id": question, "prompt": prompt, "image_id": image, "text": text} | more
