"""Fields of what is kept, told and shown: text fit for a terminal, numbers fit for names and files."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from sparkd.model.outside import clean, visible

COUNT_MAX = 10**15  # an epoch or a rank beyond it is no number of ours: it would not fit into names and slots


def _countable(value: int, info: ValidationInfo) -> int:
    if info.mode == "json" and not 0 <= value <= COUNT_MAX:  # what is made here needs no doubt, and must not fail
        raise ValueError(f"is not a number from 0 to {COUNT_MAX}")
    return value


def _measurable(value: float, info: ValidationInfo) -> float:
    if info.mode == "json" and not math.isfinite(value):
        raise ValueError("is not a number")
    return value


Word = Annotated[str, AfterValidator(visible)]  # a name or a digest
Shown = Annotated[str, AfterValidator(clean)]  # a sentence, fit for a person's terminal, a log and JSON
Count = Annotated[int, AfterValidator(_countable)]
Measure = Annotated[float, AfterValidator(_measurable)]
