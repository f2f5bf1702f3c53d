"""Mathematical expressions as answers, compared by math-verify (extra `math`)."""

from __future__ import annotations

from reverse.errors import MissingPackageError

__all__ = ["normalise_latex", "require_math_verify", "same_expression"]

_REMOVED = (
    "\\left",
    "\\right",
    "\\,",
    "\\;",
    "\\!",
    "\\ ",
    "$",
    "\\displaystyle",
    "^\\circ",
    "^{\\circ}",
    "\\%",
    " ",
)


def require_math_verify() -> None:
    """Raise MissingPackageError if math-verify is not installed."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            'comparing mathematical expressions needs math-verify: pip install "reverse-vlm[math]"'
        ) from error


def normalise_latex(text: str) -> str:
    """Remove spacing, bracket sizes, dollar signs and degree signs from an expression."""
    text = text.strip().rstrip(".").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    for removed in _REMOVED:
        text = text.replace(removed, "")
    return text


def same_expression(given: str, right: str) -> bool:
    """Whether two expressions are equal, as written or by symbolic comparison.

    Raises MissingPackageError if they differ as written and math-verify is not installed.
    """
    if normalise_latex(given) == normalise_latex(right):
        return True
    require_math_verify()
    from math_verify import parse, verify

    # math-verify's own time limit uses signals, which only the main thread receives; inputs are bounded
    # instead.
    wanted, found = (
        parse(f"${normalise_latex(each)[:1000]}$", parsing_timeout=None) for each in (right, given)
    )
    return bool(wanted and found and verify(wanted, found, timeout_seconds=None))
