"""p(`</UN>`): how unsure the model is of a phrase, read from raw logits.

Softmax of the logits upcast to float32, before temperature, top-k, top-p and any mask or processor
(arXiv 2504.13169 §3.3): only the last position's logits are read, nothing is kept but one number a step.

    Verifier(tags).p(logits)      # (rows,) float32
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from reverse.tokens.spans import TokenIds

__all__ = ["NO_TAGS", "Verifier"]

NO_TAGS = TokenIds(-1, -1, -1)  # of a model that was not taught the tokens: ids that never come up


class Verifier:
    """Reads p for whole batches; see `ResamplingConfig.score` and `.check`."""

    def __init__(
        self,
        tags: TokenIds,
        score: Literal["softmax", "pair"] = "softmax",
        check: Literal["closing", "every_token"] = "closing",
    ):
        self.tags, self.score, self.check = tags, score, check

    def p(self, logits: torch.Tensor) -> torch.Tensor:
        """p(`</UN>`) of shape (rows,), float32, from raw `logits` of shape (rows, vocabulary), any dtype.

        NaN for a row of which any logit is NaN or infinite, of either sign: such logits say nothing.
        """
        logits = logits.float()
        sound = (logits * 0.0).sum(dim=-1)  # zero; NaN where anything is not finite
        if self.tags == NO_TAGS:  # there is nothing to read but whether the logits are sound
            return sound
        if self.score == "pair":
            return torch.sigmoid(logits[:, self.tags.un] - logits[:, self.tags.cn]) + sound
        return torch.exp(logits[:, self.tags.un] - torch.logsumexp(logits, dim=-1)) + sound

    def of_phrase(self, ids: Sequence[int], ps: Sequence[float]) -> float:
        """The p of a segment that ends with a phrase: at its closing step, or the highest inside the phrase.

        `ps[i]` is p at the step that chose `ids[i]`.
        """
        if self.check == "closing" or self.tags.span not in ids:
            return ps[-1]
        opened = len(ids) - 1 - list(reversed(ids)).index(self.tags.span)
        return max(ps[opened + 1 :])
