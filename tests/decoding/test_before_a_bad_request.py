"""What stands before a request that ends an iteration is answered."""

import pytest

from reverse.decoding.failures import FailedRequest
from reverse.decoding.sources import Job, Stream


def test_requests_read_before_a_malformed_one_are_answered():
    """A request that is none dropped all that were read with it, and `generate_many()` gave no answer."""
    jobs = [
        Job(0, None, "a?", 0),
        Job(1, None, "b?", 0),
        FailedRequest(2, 5, TypeError("request 2 is a int")),
    ]
    source = Stream(iter([*jobs, Job(3, None, "c?", 0)]), lambda taken: (list(taken), None), None, "later")
    source.look(4)
    requests, _ = source.take(4)
    assert [job.index for job in requests] == [0, 1]
    source.look(4)
    assert source.take(4) is None
    with pytest.raises(TypeError, match="request 2"):
        raise source.error
