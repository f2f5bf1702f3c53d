"""Every kind of answer, in every form and sentence in which models give it; the verdict is known."""

from __future__ import annotations

import itertools

import pytest

from reverse.grading import AnswerKey, grade

# Sentences that give an answer. A form that is a sentence of its own needs no marker.
SENTENCES = (
    "{}",
    "{}.",
    "Answer: {}",
    "The answer is {}.",
    "So the final answer is: {}",
    "**Answer:** {}",
    "<answer>{}</answer>",
    "<think>It might be {decoy}.</think>\n<answer> {} </answer>",
    "<REASONING>First {decoy}.</REASONING><CONCLUSION>{}</CONCLUSION>",
    "Step 1: look at {decoy}.\nStep 2: compare.\nAnswer: {}",
    "<think>{decoy} or {decoy}?</think>{}",
    r"We get \boxed{{{}}}.",
)


def say(sentence: str, form: str, decoy: str) -> str:
    return sentence.format(form, decoy=decoy)


Forms = dict[str, tuple[str, ...]]


def texts_of(right: str, forms: Forms, decoy: str) -> list[str]:
    """An answer in every form and every sentence; `decoy` is what the reasoning says on the way."""
    return [say(sentence, form, decoy) for form, sentence in itertools.product(forms[right], SENTENCES)]


def check(texts: list[str], right: AnswerKey, wrong: AnswerKey) -> None:
    for text in texts:
        assert grade(text, right).verdict == "right", text
        assert grade(text, wrong).verdict == "wrong", text


NUMBERS = {
    "1200": (
        "1200",
        "1,200",
        "1200.0",
        "$1,200",
        "1.2k",
        "1 200",
        "1.2 × 10^3",
        "1.2e3",
        "one thousand two hundred",
    ),
    "-5": ("-5", "−5", "minus five", "-5.0", "negative five"),
    "0.25": ("0.25", ".25", "1/4", "25%", "25 percent", r"\frac{1}{4}"),
    "3.5": ("3.5", "3 1/2", "7/2", "3.5 cm", "3.50 meters", "$3.50"),
    "42": ("42", "42 apples", "forty-two", "42 km/h", "6 × 7 = 42"),
    "2500000": ("2,500,000", "2.5 million", "2.5e6"),
}
NUMBER_DECOYS = {"1200": "1300", "-5": "5", "0.25": "0.5", "3.5": "35", "42": "24", "2500000": "2500"}


@pytest.mark.parametrize("right", NUMBERS)
def test_numbers(right: str) -> None:
    """A right number in another form would be wrong, or a number of the reasoning would be taken."""
    texts, wrong = texts_of(right, NUMBERS, NUMBER_DECOYS[right]), NUMBER_DECOYS[right]
    check(texts, AnswerKey("number", (right,)), AnswerKey("number", (wrong,)))


OPTIONS = ("a red cup", "a cup", "4", "none of these", "12 cm", "Africa")
CHOICES = {
    "A": ("A", "(A)", "A.", "A) a red cup", "a red cup", "Option A", "option A is right", "A: a red cup"),
    "B": ("B", "b", "(b)", "B. a cup", "a cup", "[B]", "B - a cup"),
    "C": ("C", "(C) 4", "4", "Choice C", "C) 4"),
    "D": ("D", "D.", "none of these", "(D)", "not A but D"),
    "E": ("E", "12 cm", "E) 12 cm", "option E"),
    "F": ("F", "Africa", "africa", "F. Africa", '"F"'),
}
CHOICE_DECOYS = {"A": "B", "B": "A", "C": "D", "D": "C", "E": "F", "F": "E"}


@pytest.mark.parametrize("right", CHOICES)
def test_choices(right: str) -> None:
    """A letter inside a word, or an option inside a longer one, would be taken for the answer."""
    texts, wrong = texts_of(right, CHOICES, CHOICE_DECOYS[right]), CHOICE_DECOYS[right]
    check(texts, AnswerKey("choice", (right,), OPTIONS), AnswerKey("choice", (wrong,), OPTIONS))
    by_text = [AnswerKey("choice", (OPTIONS[ord(letter) - 65],), OPTIONS) for letter in (right, wrong)]
    check(texts, *by_text)


YES_NO = {
    "yes": (
        "yes", "Yes", "YES", "Yes, there is.", "true", "sí", "oui", "ja", "sim", "да", "はい", "是", "是的",
        "네", "evet", "igen", "tak", "有", "نعم", "हाँ",
    ),
    "no": (
        "no", "No", "NO", "No, there is not.", "false", "nein", "non", "não", "нет", "いいえ", "否",
        "不是", "아니요", "nope", "nem", "nie", "没有", "لا",
    ),
}  # fmt: skip
YES_NO_DECOYS = {"yes": "no", "no": "yes"}


@pytest.mark.parametrize("right", YES_NO)
def test_yes_and_no(right: str) -> None:
    """Answers in other languages would count as no, and a word of the reasoning as the answer."""
    texts, wrong = texts_of(right, YES_NO, YES_NO_DECOYS[right]), YES_NO_DECOYS[right]
    check(texts, AnswerKey("yes_no", (right,)), AnswerKey("yes_no", (wrong,)))


TEXTS = {
    "blue": ("blue", "Blue", "BLUE", "the blue", '"blue"', "It is blue"),
    "Barack Obama": ("Barack Obama", "barack obama", "Barack  Obama"),
    "New York City": ("New York City", "new york city", "the New York City"),
    "an ice-cream": ("ice cream", "an ice-cream", "the ice cream", "Ice-cream"),
    "2,000 years": ("2000 years", "2,000 years"),
    "Zürich": ("Zürich", "ZÜRICH", "Zu\u0308rich"),
    "half-open": ("half open", "half-open"),
    "12:30": ("12:30", "12 30"),
    "C major": ("C major", "c major"),
    "mother and son": ("mother and son", "Mother and son", "the mother and the son"),
    "two": ("two", "2", "Two"),
    "70%": ("70%", "70 %"),
}
TEXT_DECOYS = {right: ("green" if right != "C major" else "D major") for right in TEXTS}


@pytest.mark.parametrize("right", TEXTS)
def test_texts(right: str) -> None:
    """Case, articles and punctuation would decide about right and wrong."""
    texts, wrong = texts_of(right, TEXTS, TEXT_DECOYS[right]), TEXT_DECOYS[right]
    check(texts, AnswerKey("text", (right,)), AnswerKey("text", (wrong, "something else")))


SETS = {
    "red, blue": (
        "red, blue",
        "blue and red",
        "Red, Blue",
        "[red, blue]",
        "red & blue",
        "blue, red",
        "red; blue",
    ),
    "1, 2, 3": ("1, 2, 3", "3, 2 and 1", "1; 2; 3", "1, 2, and 3", "2, 3, 1"),
    "cat, dog, bird": (
        "cat, dog, bird",
        "a cat, a dog and a bird",
        "bird, cat, dog",
        "the dog, the cat, the bird",
    ),
    "2015, 2016": ("2015, 2016", "2015 and 2016", "2016, 2015", "[2015, 2016]"),
    "Ann, Bob": ("Ann, Bob", "Bob and Ann", "ann, bob", "Ann & Bob", "Bob, Ann"),
    "1,000, 5": ("1,000 and 5", "5, 1000", "1000, 5"),
    "x, y": ("x, y", "y and x", "{x, y}", "(x, y)", "x; y"),
    "north": ("north", "North", "the north"),
}
SET_DECOYS = dict.fromkeys(SETS, "red, blue, green")


@pytest.mark.parametrize("right", SETS)
def test_sets(right: str) -> None:
    """The order of a list would decide, or a part of it would be enough."""
    texts, wrong = texts_of(right, SETS, SET_DECOYS[right]), SET_DECOYS[right]
    check(texts, AnswerKey("set", (right,)), AnswerKey("set", (wrong,)))


EXPRESSIONS = {
    r"\frac{1}{2}": (r"\frac{1}{2}", r"\dfrac{1}{2}", r"$\frac{1}{2}$", "1/2", "0.5"),
    r"x^2+2x+1": (r"x^2+2x+1", r"(x+1)^2", r"x^{2} + 2x + 1", r"1+2x+x^2"),
    r"2\sqrt{3}": (r"2\sqrt{3}", r"\sqrt{12}", r"2 \sqrt{3}", r"$2\sqrt{3}$"),
    r"\pi/4": (r"\pi/4", r"\frac{\pi}{4}", r"0.25\pi", r"$\frac{\pi}{4}$"),
    r"(1,2)": (r"(1,2)", r"\left(1,2\right)", r"(1, 2)"),
    r"45^\circ": (r"45^\circ", r"45", r"$45^{\circ}$"),
    r"x=3": (r"x=3", r"x = 3", r"3"),
    r"-7": ("-7", "$-7$", r"\,-7"),
    r"e^{2}": (r"e^{2}", r"e^2", r"$e^2$"),
    r"\log 10": (r"\log 10", r"\log{10}"),
}
EXPRESSION_DECOYS = dict.fromkeys(EXPRESSIONS, "17z")


@pytest.mark.parametrize("right", EXPRESSIONS)
def test_expressions(right: str) -> None:
    """Equal expressions that are written otherwise would be wrong."""
    pytest.importorskip("math_verify")
    texts, wrong = texts_of(right, EXPRESSIONS, EXPRESSION_DECOYS[right]), EXPRESSION_DECOYS[right]
    check(texts, AnswerKey("latex", (right,)), AnswerKey("latex", (wrong,)))


def test_the_tables_are_large() -> None:
    """A kind with few cases is not known to be read well."""
    for forms in (NUMBERS, CHOICES, YES_NO, TEXTS, SETS, EXPRESSIONS):
        assert sum(len(said) for said in forms.values()) * len(SENTENCES) >= 400
