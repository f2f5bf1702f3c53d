"""Plain decoding as a policy: every segment is accepted and p is only read."""

from __future__ import annotations

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.policy import Answer, Continue, Finish, Segment
from reverse.tokens.spans import TokenIds

__all__ = ["KeepPhrasesPolicy", "PlainPolicy"]


class PlainPolicy:
    """Accepts every segment, as `model.generate()` would.

    Args: those of `ResamplePolicy`. Only `temperature` changes the answer.
    """

    masks_tags = False
    merges_closing_tags = False
    is_checked = False

    def __init__(
        self, config: ResamplingConfig, tags: TokenIds, max_new_tokens: int, temperature: float = 0.0
    ):
        self.tags, self.max_new_tokens, self.temperature = tags, max_new_tokens, temperature
        self.answer = Answer(resolved=None)

    def begin(self) -> Continue:
        return Continue(self.temperature, 0, self.temperature)

    def next(self, segment: Segment) -> Continue | Finish:
        answer = self.answer
        if segment.end == "phrase" and segment.ids.count(self.tags.span) == 1:
            is_confident = segment.ids[-1] == self.tags.cn
            answer.append_phrase(segment.ids, self.tags.span, segment.p, is_confident)
        else:
            answer.append(segment.ids)
        answer.committed_length = len(answer.ids)
        if segment.end != "phrase":
            return Finish(segment.end)
        if segment.stop:
            return Finish("stop")
        return self.begin() if len(answer.ids) < self.max_new_tokens else Finish("length")


class KeepPhrasesPolicy(PlainPolicy):
    """Accepts every segment, and writes `</CN>` where the model would write `</UN>`.

    The model then goes on as after a phrase that it is sure of.
    """

    merges_closing_tags = True
