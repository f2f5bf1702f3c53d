"""How a metric is headed, in terminals and on pages.

heading("CHAIRi", "%", "low")              # "CHAIRi % ↓"
"""

__all__ = ["heading"]


def heading(title: str, unit: str, better: str) -> str:
    """A metric's title, its unit unless the title says it, and an arrow to where better is."""
    said = " %" if unit == "%" else f" ({unit})" if unit else ""
    arrow = {"low": " ↓", "high": " ↑"}.get(better, "")
    return title + ("" if unit and unit in title else said) + arrow
