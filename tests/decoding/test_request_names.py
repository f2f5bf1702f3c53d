"""An error of one request among many must say which one it is, once."""

import pytest

import reverse
from reverse.decoding.preparing.preparing import Preparer
from tests.decoding import mock
from tests.decoding.scripted import Scripted


@pytest.mark.parametrize(
    "request_, words",
    [
        ({"prompt": ""}, "request 1: its prompt is empty, got ''"),
        ({"prompt": "<image> what?"}, "request 1: its prompt has 1 image placeholders for 0 pictures"),
        ({"prompt": [{"role": "user"}]}, "request 1: its chat has the message"),
        ({"prompt": "prompt 0 \ud83d"}, "request 1: its prompt holds half of a surrogate pair"),
    ],
)
def test_one_number_says_which_request_it_is(tiny_llava, request_, words):
    """ "request 1: prompt 0 is empty" has two numbers, of which one says nothing."""
    found = list(
        reverse.generate_many(*tiny_llava, [{}, request_], on_error="yield", max_new_tokens=2, threshold=0.5)
    )
    assert str(found[1].error).startswith(words)
    with pytest.raises((ValueError, TypeError), match=r"^(prompt|chat) 0 "):
        reverse.generate(*tiny_llava, None, request_["prompt"], threshold=0.5)


@pytest.mark.parametrize("bad", [0, 31, 63])
def test_one_bad_request_does_not_have_all_others_prepared_again_and_again(tiny_llava, monkeypatch, bad):
    """With 64 rows, 2,080 pictures were opened where the last of 64 was missing."""
    scripted, prepared = Scripted(monkeypatch, mock.always(mock.SPAN, 7, mock.CN, mock.EOS)), []

    def prepare(self, conversation, request, hints):
        prepared.append(conversation)
        if request.seed == bad:
            raise ValueError("no such picture")
        return scripted.prepare(conversation, request, hints)

    monkeypatch.setattr(Preparer, "prepare", prepare)
    requests = ({"prompt": "What?", "seed": i} for i in range(64))
    options = {"mode": scripted.mode, "on_error": "yield", "max_sequences": 64, "threshold": 0.5}
    found = list(reverse.generate_many(*tiny_llava, requests, **options))
    failures = [each for each in found if isinstance(each, reverse.FailedRequest)]
    assert len(found) == 64 and found.index(failures[0]) == bad
    assert [failure.index for failure in failures] == [bad], failures[-1].error
    assert len(prepared) < 8 * 64
