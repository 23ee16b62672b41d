"""What is wrong with data from outside, in words: the place and the first fault, never the value that stands there."""

from __future__ import annotations

from pydantic import ValidationError


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Where ("cluster.nodes.1.name", empty: the whole) and what ("Field required")."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return ".".join(str(part) for part in first["loc"]), str(first["msg"])
