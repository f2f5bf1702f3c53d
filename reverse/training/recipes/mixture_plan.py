"""Plan how often the records of several sets occur in a pass over all of them.

>>> count_items([1000, 50], [PartPlan(), PartPlan(share=0.2)])   # a fifth of a pass is replay
[1000, 250]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from reverse.errors import RequestError

__all__ = ["MOST_ITEMS", "PartPlan", "check_plans", "count_items"]

MOST_ITEMS = 1 << 31  # of a pass


class PartPlan(NamedTuple):
    """How often the records of a part occur in a pass."""

    share: float | None = None  # of all items of a pass; None: `repeat` says
    repeat: float = 1.0  # times that each record comes; 0.5: half of them in each pass


def check_plans(plans: Sequence[PartPlan], names: Sequence[str] | None = None) -> None:
    """Raise RequestError for shares that contradict each other, naming the parts by `names`."""
    called = names or [f"part {k}" for k in range(len(plans))]
    for plan, name in zip(plans, called, strict=True):
        if plan.share is not None and plan.repeat != 1:
            raise RequestError(
                f"{name} has share {plan.share:g} and repeat {plan.repeat:g}: give one of them"
            )
    shares = [plan.share for plan in plans if plan.share is not None]
    if len(shares) == len(plans):
        if abs(sum(shares) - 1) > 1e-6:
            raise RequestError(
                f"the shares of all parts add up to {sum(shares):g} and not to 1: change one, or leave out "
                "the share of the part that is to come as a whole"
            )
    elif sum(shares) >= 1:
        raise RequestError(
            f"the shares add up to {sum(shares):g}, which leaves nothing for the parts without one: give "
            "shares below 1 together"
        )


def count_items(sizes: Sequence[int], plans: Sequence[PartPlan]) -> list[int]:
    """Return how many items of each part a pass has, at least one each.

    Parts without a share occur `repeat` times; shares are then parts of the whole pass. If all parts
    have shares, a pass has as many items as all parts have records.
    """
    own = [
        0 if plan.share is not None else max(1, round(size * plan.repeat))
        for size, plan in zip(sizes, plans, strict=True)
    ]
    shared = sum(plan.share or 0.0 for plan in plans)
    whole = sum(own) / (1 - shared) if any(own) else float(sum(sizes))
    counts = [
        count if plan.share is None else max(1, round(plan.share * whole))
        for count, plan in zip(own, plans, strict=True)
    ]
    if sum(counts) > MOST_ITEMS:
        raise RequestError(
            f"a pass over the mixture has {sum(counts):.3g} items, at most {MOST_ITEMS:,} are possible: give "
            "smaller values of repeat or share"
        )
    return counts
