"""What stands before a request that ends an iteration is answered."""

import pytest

import reverse


def test_requests_read_before_a_malformed_one_are_answered(tiny_llava):
    """A request that is none dropped all that were read with it, and `generate_many()` gave no answer."""
    read = []

    def requests():
        for request in ({"prompt": "a?"}, {"prompt": "b?"}, 5, {"prompt": "c?"}):
            read.append(request)
            yield request

    answers = reverse.generate_many(
        *tiny_llava, requests(), max_sequences=4, ordered=False, max_new_tokens=2, threshold=0.5
    )
    assert sorted(next(answers)[0] for _ in range(2)) == [0, 1]
    with pytest.raises(TypeError, match="request 2 is a int"):
        next(answers)
    assert list(answers) == [] and {"prompt": "c?"} not in read
