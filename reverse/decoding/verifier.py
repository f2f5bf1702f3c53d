"""Read p(`</UN>`), the model's doubt about a phrase, from raw logits.

It is the softmax of the logits in float32, before temperature, top-k, top-p, masks and processors
(arXiv 2504.13169 §3.3).

    Verifier(tags).p(logits)      # (rows,) float32
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from reverse.tokens.spans import TokenIds

__all__ = ["NO_TAGS", "Verifier"]

NO_TAGS = TokenIds(-1, -1, -1)  # of a vocabulary without the three tokens: ids that never occur


class Verifier:
    """Reads p(`</UN>`) of batches; see `ResamplingConfig.score` and `.check`."""

    def __init__(
        self,
        tags: TokenIds,
        score: Literal["softmax", "pair"] = "softmax",
        check: Literal["closing", "every_token"] = "closing",
    ):
        self.tags, self.score, self.check = tags, score, check

    def p(self, logits: torch.Tensor) -> torch.Tensor:
        """Return p(`</UN>`) of shape (rows,), float32, from raw `logits` of shape (rows, vocabulary).

        It is NaN for a row with any logit that is NaN or infinite.
        """
        logits = logits.float()
        finite = (logits * 0.0).sum(dim=-1)  # zero; NaN where anything is not finite
        if self.tags == NO_TAGS:  # only whether the logits are finite can be read
            return finite
        if self.score == "pair":
            return torch.sigmoid(logits[:, self.tags.un] - logits[:, self.tags.cn]) + finite
        return torch.exp(logits[:, self.tags.un] - torch.logsumexp(logits, dim=-1)) + finite

    def read_phrase(self, ids: Sequence[int], ps: Sequence[float]) -> float:
        """Return p of a segment that ends with a phrase: at its closing tag, or the highest in the phrase.

        `ps[i]` is p at the step that chose `ids[i]`.
        """
        if self.check == "closing" or self.tags.span not in ids:
            return ps[-1]
        opened = len(ids) - 1 - list(reversed(ids)).index(self.tags.span)
        return max(ps[opened + 1 :])
