"""What the published code does otherwise is named wherever `.released()` is described."""

import re
from pathlib import Path

import pytest

from reverse.decoding.config import ResamplingConfig

ROOT = Path(__file__).parents[2]
NAMES = [f"R{k}" for k in range(1, 10)]


@pytest.mark.parametrize("text", [ResamplingConfig.released.__doc__, (ROOT / "docs/decoding.md").read_text()])
def test_all_nine_differences_are_named(text):
    """A user who compares with the published code would look for a bug in one of the two."""
    assert re.findall(r"^(?:\| | +)(R\d) ", text, re.M) == NAMES


def test_nothing_promises_the_published_outcomes():
    """A page would promise more than was measured on random scripts (benchmarks/results/fidelity.json)."""
    texts = [ROOT / "docs/decoding.md", ROOT / "reverse/decoding/config.py"]
    for path in texts:
        assert not re.search(r"outcomes\s+of\s+the\s+published\s+code", path.read_text()), path
