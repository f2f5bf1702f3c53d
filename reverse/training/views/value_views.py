"""View of values: beginnings of answers with the value that a value head learns for them (TSST).

view_values(record)
# [{"id", "prompt": [user], "images": ["1.png"], "prefix": "Step 1: …", "value": 0.5}, …]
"""

from __future__ import annotations

from typing import Any

from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.tree_values import find_prefix_values
from reverse.errors import DataError
from reverse.training.views.preference_views import make_prompt

__all__ = ["view_values"]


def view_values(record: DraftRecord) -> list[dict[str, Any]]:
    """Make a row for each beginning of an answer, each text once; none if nothing is known of the steps.

    The values are those of the record's segments, or of drafts with the role "prefix"; without any, those of
    the tree that its judged drafts form (`reverse.data.drafts.tree_values`). The head's output is a share
    between 0 and 1. Raises DataError for a value that is none.
    """
    rows: list[dict[str, Any]] = []
    for number, node in enumerate(find_prefix_values(record)):
        if not 0 <= node.value <= 1:
            raise DataError(
                f"record {record.id!r:.80} has the value {node.value}: values lie between 0 and 1, scale them"
            )
        rows.append(
            {
                "id": f"{record.id}#value-{number}",
                "prompt": make_prompt(record),
                "images": list(record.images),
                "prefix": node.text,
                "value": node.value,
            }
        )
    return rows
