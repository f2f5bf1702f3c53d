"""An error of one request among many must say which one it is, once."""

import pytest

import reverse


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
