"""What all sections of a recipe share: strict keys, strict values, readable numbers."""

from __future__ import annotations

import math
import unicodedata
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["LARGEST_INT", "Section"]

LARGEST_INT = (1 << 63) - 1


class Section(BaseModel):
    """A section with strict keys and values; only numbers are converted: YAML reads 2e-5 as a text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _convert(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = get_args(kind) or (kind,)
        if value == "none" and NoneType in kinds:
            return None
        if float in kinds and isinstance(value, int | str) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return math.inf
            except ValueError:
                return value
        return int(value) if int in kinds and isinstance(value, float) and value.is_integer() else value

    @field_validator("*", mode="after")
    @classmethod
    def _check(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            raise PydanticCustomError("range", f"must be at most {LARGEST_INT}")
        if isinstance(value, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
            raise PydanticCustomError("text", "holds control characters or half a character")
        return value
