"""Published file formats by name, one module for each system or data set that published them."""

from reverse.data.drafts.formats import (
    aokvqa_format,
    chartqa_format,
    clevr_math_format,
    llava_cot_format,
    mulberry_format,
    r3v_format,
    scienceqa_format,
    srpo_format,
    tabmwp_format,
    tsst_format,
    vcr_format,
)
from reverse.data.drafts.published_format import PublishedFormat
from reverse.errors import RequestError

__all__ = ["FORMATS", "find_format"]

_MODULES = (
    r3v_format, llava_cot_format, mulberry_format, srpo_format, tsst_format,
    aokvqa_format, scienceqa_format, vcr_format, tabmwp_format, chartqa_format, clevr_math_format,
)  # fmt: skip
FORMATS: dict[str, PublishedFormat] = {each.name: each for module in _MODULES for each in module.FORMATS}


def find_format(name: str) -> PublishedFormat:
    """Return the format of this name. Raises RequestError, which lists the names."""
    if name not in FORMATS:
        raise RequestError(f"there is no format {name!r:.80}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
