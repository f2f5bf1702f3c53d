"""Yes and no in many languages: find them in an answer, and find their opposites.

    >>> find_yes_no("No, it is not."), find_opposite("NON", "Est-ce un chien ?")
    ((0, 2), 'OUI')

A word counts only if it is the whole answer or is separated from the rest: "No, …" does, "No dog …" does not.
"""

import re

from reverse.data.tagging.numbers import match_case

# One row per language: (yes, no) pairs, the usual one first. If several languages share a word, the question
# tells which is meant; if it does not, the first row with the word is used.
PAIRS = {
    "en": (("yes", "no"), ("yeah", "nope"), ("yep", "nope"), ("yup", "nope"), ("yeah", "nah"),
           ("true", "false"), ("correct", "incorrect")),
    "es": (("sí", "no"), ("si", "no")),
    "fr": (("oui", "non"), ("si", "non")),
    "de": (("ja", "nein"), ("doch", "nein")),
    "it": (("sì", "no"),),
    "pt": (("sim", "não"), ("sim", "nao")),
    "nl": (("ja", "nee"),),
    "sv": (("ja", "nej"),),
    "fi": (("kyllä", "ei"),),
    "pl": (("tak", "nie"),),
    "cs": (("ano", "ne"),),
    "hu": (("igen", "nem"),),
    "ro": (("da", "nu"),),
    "tr": (("evet", "hayır"),),
    "id": (("ya", "tidak"),),
    "vi": (("có", "không"), ("vâng", "không")),
    "ru": (("да", "нет"),),
    "uk": (("так", "ні"),),
    "el": (("ναι", "όχι"),),
    "ar": (("نعم", "لا"),),
    "fa": (("بله", "خیر"),),
    "he": (("כן", "לא"),),
    "hi": (("हाँ", "नहीं"), ("हां", "नहीं")),
    "th": (("ใช่", "ไม่ใช่"), ("มี", "ไม่มี")),
    "zh": (("是的", "不是"), ("是", "否"), ("是", "不是"), ("有", "没有"), ("有", "沒有"), ("对", "不对"),
           ("可以", "不可以"), ("能", "不能")),
    "ja": (("はい", "いいえ"), ("ええ", "いいえ")),
    "ko": (("네", "아니요"), ("예", "아니요"), ("네", "아니오"), ("예", "아니오")),
}  # fmt: skip

# Words that reveal the language of a question, for languages whose script does not.
MARKS = {
    "en": "is are the does do can there this was were has have of what in and it a",
    "es": "¿ es hay está están el los las una esta este en y del puedes",
    "fr": "est il les y une cette ce dans et le la des sont voir que",
    "de": "ist der die das sind ein eine es gibt auf dem bild und nicht den im",
    "it": "è c'è il gli nell'immagine una nella questo questa di che sono ci",
    "pt": "é há o os uma na no imagem está esta este em são do da você",
    "nl": "is er het een de op deze zijn staat afbeelding foto",
    "sv": "är det en ett på bilden finns den och som",
    "fi": "onko kuvassa tämä ja",
    "pl": "czy jest na zdjęciu to są w",
    "cs": "je na obrázku to jsou v ten",
    "hu": "van a képen ez egy az",
    "ro": "este în imagine o un sunt există pe",
    "tr": "mi mı mu mü bir var bu resimde",
    "id": "apakah ada di gambar ini itu yang",
    "vi": "có trong ảnh hình không này một phải",
}
_MARKS = {language: frozenset(words.split()) for language, words in MARKS.items()}
_ENGLISH_TEXT = """
    the a an is are was were of in on and to with for it this that there he she they his her its at
    by from as be has have no not or can you your i what how which who one two three"""
_ENGLISH = frozenset(_ENGLISH_TEXT.split())

_OPPOSITE: dict[str, dict[str, str]] = {}  # word -> language -> its opposite
for _language, _pairs in PAIRS.items():
    for _yes, _no in _pairs:
        _OPPOSITE.setdefault(_yes, {}).setdefault(_language, _no)
        _OPPOSITE.setdefault(_no, {}).setdefault(_language, _yes)

_WORD = re.compile(
    r"\s*+[\"'“‘«(*_¡]*+("  # possessive quantifiers: no backtracking into what was skipped
    + "|".join(re.escape(word) for word in sorted(_OPPOSITE, key=len, reverse=True))
    + r")(?=[\"'”’»)*_]*\s*(?:$|[,.;:!?，。！？、،;—–]|-\s))",
    re.IGNORECASE,
)


def find_yes_no(answer: str) -> tuple[int, int] | None:
    """Return the offsets of the yes or no with which `answer` begins; None if it begins with neither."""
    match = _WORD.match(answer)
    return match.span(1) if match else None


def find_opposite(word: str, question: str = "") -> str | None:
    """Return the opposite of a yes or no, in its language and case; None for any other text.

    `question` tells the language if several share the word ("no", "ja").
    """
    opposites = _OPPOSITE.get(word.strip().lower())
    if not opposites:
        return None
    language = guess_language(question, tuple(opposites)) if len(opposites) > 1 else next(iter(opposites))
    return match_case(word.strip(), opposites[language])


def guess_language(text: str, among: tuple[str, ...] = tuple(MARKS)) -> str:
    """Return the language of `among` whose marks (frequent words) are most often in `text`, or the first."""
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?|¿", text.lower().replace("’", "'"))
    counts = {language: sum(word in _MARKS.get(language, ()) for word in words) for language in among}
    return max(counts, key=lambda language: counts[language])


def looks_english(text: str) -> bool:
    """Whether `text` may be parsed as English: mostly Latin letters, and few frequent words of another
    language.
    """
    letters = [letter for letter in text if letter.isalpha()]
    if sum(letter.isascii() for letter in letters) < 0.8 * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    english = sum(word in _ENGLISH for word in words)
    if len(words) < 4 or english >= 0.2 * len(words):
        return True
    language = guess_language(text)
    return language == "en" or english >= sum(word in _MARKS[language] for word in words)
