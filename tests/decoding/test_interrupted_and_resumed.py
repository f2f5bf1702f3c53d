"""Where work is broken off and where it goes on: nothing is lost, and nothing is read in another way."""

from unittest.mock import patch

import pytest

import reverse
from reverse.decoding.config import ResamplingConfig
from tests.decoding import mock
from tests.decoding.worlds import talkative


def test_ctrl_c_while_progress_is_told_returns_what_is_finished():
    """A bar that draws when Ctrl-C comes lost every answer, and the rows stayed in memory."""
    model, processor = talkative("llava")
    prompts = [f"Is there a {name}?" for name in ("dog", "cat", "bus")]
    told = []

    def progress(count):
        told.append(count)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(reverse.Interrupted) as stopped:
        reverse.generate(
            model, processor, prompt=prompts, progress=progress, batch_size=1, threshold=0.3, max_new_tokens=4
        )
    assert sorted(stopped.value.results) == [0, 1]
    assert all(isinstance(result, reverse.Result) for result in stopped.value.results.values())


@pytest.mark.parametrize(("phrase", "ends"), [(" Mr", []), (" dog", [4])])
def test_an_abbreviation_that_ends_a_phrase_ends_no_sentence(phrase, ends):
    """Behind a closing tag "Mr" was no word any more, and a rewind could stop between "Mr." and the name."""
    texts = [*mock.TEXTS[:6], phrase, " Smith", *mock.TEXTS[8:]]
    model = mock.always(mock.SPAN, 6, mock.CN, mock.DOT, 7, mock.SPAN, 8, mock.CN, mock.EOS)
    with patch.object(mock, "TEXTS", texts):
        result, policy = mock.run(model, ResamplingConfig(threshold=0.5, commit="answer"))
    assert result.text == f"{phrase}. Smith c" and policy.sentence_ends == ends
