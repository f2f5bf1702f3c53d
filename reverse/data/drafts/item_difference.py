"""Keep what an item of a published file holds beyond a draft record, so that the item can be written again.

    said = {"question": "How many?", "answer": "2"}                     # the item as far as the record knows
    it item = {"question": "<image>\\nHow many?", "answer": 2, "grade": 3}
    kept = find_difference(said, item)
    restore_item(said, kept) == item                                    # it also works after a change of
    `said`

A difference is a JSON value. None: no difference. Otherwise an object with one of these keys:

    is       the item's value, which replaces that of `said`
    around   [before, after]: the item's text is that of `said` with these texts around it
    in       {key: difference} of an object; `keys` are the item's keys in their order, `gone` are keys that
    it lacks
    at       {"index": difference} of a list; `more` are items after those of `said`

So a text of the record is not stored twice: a changed record changes the item that is written.
"""

from __future__ import annotations

from typing import Any

__all__ = ["find_difference", "is_same", "restore_item"]


def is_same(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal in value, type and order of keys: 1, 1.0 and true all differ."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(is_same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(is_same, first, second))
    if isinstance(first, float):
        return repr(first) == repr(second)  # 0.0 and -0.0
    return bool(first == second)


def find_difference(said: Any, item: Any) -> dict[str, Any] | None:
    """Return the difference that turns `said` into `item`."""
    if is_same(said, item):
        return None
    if isinstance(said, dict) and isinstance(item, dict):
        kept: dict[str, Any] = {}
        for key, value in item.items():
            difference = find_difference(said[key], value) if key in said else {"is": value}
            if difference is not None:
                kept[key] = difference
        difference = {"in": kept}
        if list(item) != [*said, *(key for key in item if key not in said)]:
            difference |= {"keys": list(item), "gone": [key for key in said if key not in item]}
        return difference
    if isinstance(said, list) and isinstance(item, list) and 0 < len(said) <= len(item):
        parts = {
            str(i): part
            for i, (first, second) in enumerate(zip(said, item, strict=False))
            if (part := find_difference(first, second)) is not None
        }
        return {"at": parts} | ({"more": item[len(said) :]} if len(item) > len(said) else {})
    if isinstance(said, str) and isinstance(item, str) and said and item.count(said) == 1:
        return {"around": item.split(said)}
    return {"is": item}


def restore_item(said: Any, difference: dict[str, Any] | None) -> Any:
    """Apply a difference to `said` and return the item.

    A part that no longer fits keeps the value of `said`.
    """
    if difference is None:
        return said
    if "is" in difference:
        return difference["is"]
    if "around" in difference:
        before, after = difference["around"]
        return f"{before}{said}{after}" if isinstance(said, str) else said
    if "in" in difference:
        return _restore_object(said, difference)
    if not isinstance(said, list):
        return said
    parts = difference.get("at", {})
    restored = [restore_item(each, parts.get(str(i))) for i, each in enumerate(said)]
    return restored + difference.get("more", [])


def _restore_object(said: Any, difference: dict[str, Any]) -> Any:
    if not isinstance(said, dict):
        return said
    kept = difference["in"]
    whole = {key: restore_item(value, kept.get(key)) for key, value in said.items()}
    whole |= {key: each["is"] for key, each in kept.items() if key not in said and "is" in each}
    keys, gone = difference.get("keys", []), difference.get("gone", [])
    order = [*(key for key in keys if key in whole), *(key for key in whole if key not in (*keys, *gone))]
    return {key: whole[key] for key in order}
