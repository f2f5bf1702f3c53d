"""The language data must be there: `make install` fetches them, by hand it is `reverse data language`."""

import pytest

from reverse.evaluation.scoring import language


@pytest.fixture(scope="session", autouse=True)
def words():
    language.prepare()
