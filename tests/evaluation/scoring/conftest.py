"""The language data must be there: `make install` fetches them, by hand it is `reverse data language`."""

import pytest

from reverse.evaluation.reading import english_words


@pytest.fixture(scope="session", autouse=True)
def words():
    english_words.prepare_words()
