"""What the local socket's verbs take besides their name: checked once, before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparkd.model.errors import UsageError
from sparkd.model.invalid import first_fault

NAME_MAX_CHARS = 255
MEASURE_S = 2.0


class Told(BaseModel):
    """Strict: "50" is no number and "false" no truth value. What a newer command says besides is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Events(Told):
    last: int = Field(default=50, ge=0, le=10**9)
    follow: bool = False


class Intent(Told):
    profile: str | None = Field(default=None, max_length=NAME_MAX_CHARS)


class Clean(Told):
    """`only`: of what is tidied, empty: all of it. A command sends every flag that it has."""

    dry_run: bool = False
    only: list[str] | None = Field(default=None, max_length=32)


class Throughput(Told):
    node: str | None = Field(default=None, max_length=NAME_MAX_CHARS)
    seconds: float = MEASURE_S


Kind = TypeVar("Kind", bound=Told)


def told(request: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """The request's arguments. Raises UsageError (exit status 64), which shows none of the values."""
    try:
        return kind.model_validate(request)
    except ValidationError as error:
        place, fault = first_fault(error)
        says = fault.removeprefix("Input ").replace("should", "must", 1)
        raise UsageError(f"{str(request.get('verb'))[:40]} cannot take this {place[:NAME_MAX_CHARS]}: it {says}") from None
