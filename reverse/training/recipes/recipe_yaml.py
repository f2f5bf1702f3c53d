"""Read the YAML of an untrusted recipe: its size and depth are bounded, and it is read strictly.

    parse_recipe_yaml(text, "mine.yaml")      # plain values
    show_value("x" * 1000)                    # a value for a message, cut to a bounded length

A recipe is two levels of keys and values. So what is larger than `MAX_BYTES`, deeper than `MAX_DEPTH`, or
repeats lists and sections by reference (`*name`: ten lines make a billion values) is refused.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from reverse.errors import RequestError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "parse_recipe_yaml", "show_value", "write_recipe_yaml"]

MAX_BYTES = 1 << 16
MAX_DEPTH = 8
_PLAIN = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_SHOWN = 80  # characters of a value in a message


def parse_recipe_yaml(text: str, name: str) -> Any:
    """Parse a YAML text. A repeated key is an error, because the first value would be lost.

    Args:
        name: name of the file or setting, for the error.

    Raises:
        ValueError: too large or deep, references to lists or sections, not YAML.
    """
    import yaml

    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise RequestError(
            f"{name} takes {size:,} bytes, and a recipe {MAX_BYTES:,} at most: is it another file?"
        )
    try:
        _check_structure(text, name)
        return yaml.load(text, Loader=_strict_loader())
    except yaml.YAMLError as error:
        raise RequestError(
            f"{name} is not YAML ({' '.join(str(error).split())[:400]}): mend it there"
        ) from error
    except RecursionError as error:
        raise RequestError(
            f"{name} is nested too deeply: a recipe has sections with keys and values"
        ) from error
    except (ValueError, OverflowError) as error:
        if str(error).startswith(name):
            raise
        # A date that does not exist, a number of more digits than Python reads.
        raise RequestError(f"{name} holds a value that cannot be read ({str(error)[:200]})") from error


def show_value(value: Any) -> str:
    """Return a value for a message: one line of bounded length."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _SHOWN
    short.maxlevel, short.maxdict, short.maxlist = 2, 4, 4
    try:
        return short.repr(value)[: 4 * _SHOWN].encode("utf-8", "backslashreplace").decode("utf-8")
    except ValueError:  # a whole number of more digits than Python writes
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else "a value too long"


def _check_structure(text: str, name: str) -> None:
    """Check depth and references before any value is built; raises ValueError."""
    import yaml
    from yaml import events

    depth = 0
    collections: set[str] = set()  # names of lists and sections that may be referred to
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, events.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RequestError(
                    f"{name}, line {line}: values stand in one another more than {MAX_DEPTH} deep: a recipe "
                    "has sections with keys and values"
                )
            if event.anchor is not None:
                collections.add(event.anchor)
        elif isinstance(event, events.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, events.AliasEvent) and event.anchor in collections:
            raise RequestError(
                f"{name}, line {line}: *{event.anchor[:_SHOWN]} repeats a whole list or section: write its "
                "keys out"
            )


def _strict_loader() -> type:
    """Make the loader of yaml.safe_load, but with an error for a repeated key."""
    import yaml

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        places: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in places:
                raise yaml.YAMLError(f"{show_value(name)} stands twice, in lines {places[name]} and {line}")
            places[name] = line
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    def refuse(node: Any) -> yaml.YAMLError:
        line = node.start_mark.line + 1
        return yaml.YAMLError(f"{show_value(node.value)}, line {line}, is not a plain number: write digits")

    def integer(loader: Any, node: Any) -> int:
        if not _PLAIN.fullmatch(node.value):  # YAML 1.1 reads 010 as 8 and 1:30 as 90
            raise refuse(node)
        return int(node.value)

    def number(loader: Any, node: Any) -> float:
        if ":" in node.value:
            raise refuse(node)
        return yaml.SafeLoader.construct_yaml_float(loader, node)

    Strict.add_constructor("tag:yaml.org,2002:int", integer)
    Strict.add_constructor("tag:yaml.org,2002:float", number)
    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Strict


def write_recipe_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    import yaml

    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
