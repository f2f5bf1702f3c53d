"""The prompt that asks a language model for a negative, and the reader of its replies.

    >>> read_reply('{"index": 1, "phrase": "a cat"}', offered=[4, 7])
    (4, 'a cat')

A change of the prompt needs a new VERSION, because replies are cached by their prompt.
"""

import json
from collections.abc import Sequence

from reverse.data.negatives.conversation_turns import AnswerTurn
from reverse.errors import DataError
from reverse.files.text_reading import find_surrogate, replace_surrogates
from reverse.tokens.spans import remove_tags

VERSION = 1
MAX_OFFERED = 6  # phrases offered for one answer
MAX_SHOWN = 4000  # characters of the question and of the answer that are shown
MAX_NEW_PHRASE = 200  # characters

SYSTEM = """\
You prepare training data that teaches a vision-language model to notice its own mistakes. You get a \
question about a picture, a correct answer, and numbered phrases of that answer. Make exactly one of them \
wrong.

Choose the phrase that a model could most plausibly get wrong, and write another in its place that
- is of the same sort (an animal for an animal, a colour for a colour, a place for a place) and has about \
the same length, so that the sentence up to there still reads well;
- would look clearly different in the picture: no synonym, no more general or more detailed word, no mere \
change of singular and plural, article or pronoun;
- cannot be true, as far as the question and the answer tell; what they mention elsewhere may be true.

Keep prepositions and articles of the phrase unless the change needs others. If the question already \
contains the first word of the phrase, keep that word.

Reply with one JSON object and nothing else: {"index": <number of the phrase>, "phrase": "<the new phrase>"}

Example. Phrases: 1. "a black cat" 2. "on the sofa"
{"index": 2, "phrase": "under the table"}"""


def build_messages(turn: AnswerTurn, offered: Sequence[int]) -> list[dict[str, str]]:
    """Return the chat about one answer; `offered` are indices of its phrases, which the prompt numbers from
    1.
    """
    phrases = turn.answer.phrases
    numbered = "\n".join(
        f"{number}. {json.dumps(phrases[at].text, ensure_ascii=False)}"
        for number, at in enumerate(offered, 1)
    )
    question, answer = turn.question[:MAX_SHOWN], turn.answer.text[:MAX_SHOWN]
    prompt = f"Question: {question}\n\nAnswer: {answer}\n\nPhrases:\n{numbered}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": replace_surrogates(prompt)}]


def read_reply(reply: str, offered: Sequence[int]) -> tuple[int, str]:
    """Return the index of the chosen phrase in the answer, and its replacement.

    Only a code fence may stand around the JSON object. Raises DataError with the reason.
    """
    text = reply.strip()
    if len(text) > 6 and text.startswith("```") and text.endswith("```"):  # a code fence
        text = text[3:-3].removeprefix("json")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("it is not a JSON object") from error
    if not isinstance(content, dict) or set(content) != {"index", "phrase"}:
        raise DataError('it must have the keys "index" and "phrase" and no others')
    index, phrase = content["index"], content["phrase"]
    if not isinstance(index, int) or isinstance(index, bool) or not 1 <= index <= len(offered):
        raise DataError(f'"index" must be a number from 1 to {len(offered)}')
    if not isinstance(phrase, str) or not phrase.strip() or len(phrase) > MAX_NEW_PHRASE:
        raise DataError(f'"phrase" must be a text of 1 to {MAX_NEW_PHRASE} characters')
    phrase = phrase.strip()
    if remove_tags(phrase) != phrase or find_surrogate(phrase) or any(ord(letter) < 32 for letter in phrase):
        raise DataError('"phrase" must be on one line and hold no tags and no half of a surrogate pair')
    return offered[index - 1], phrase
