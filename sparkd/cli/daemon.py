"""The door to this node's daemon: one question, or a stream, over its local socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparkd.agent import local
from sparkd.host.paths import Paths
from sparkd.model.errors import EXIT_UNKNOWN, SparkdError, UnreachableError

Answer = dict[str, Any]


def ask(verb: str, *, timeout_s: float = local.ANSWER_MAX_S, **fields: Any) -> Answer:
    """The daemon's answer. UnreachableError (exit 3) where there is none; SparkdError in the daemon's own words."""
    try:
        return local.ask(Paths.from_environment().socket, verb, timeout_s=timeout_s, **fields)
    except SparkdError as error:
        raise _unreachable(error) from None


def stream(verb: str, **fields: Any) -> Iterator[Answer]:
    """The daemon's answers as they come, however long it takes, until it or the caller ends it. Raises as `ask` does."""
    try:
        yield from local.stream(Paths.from_environment().socket, verb, **fields)
    except SparkdError as error:
        raise _unreachable(error) from None


def _unreachable(error: SparkdError) -> SparkdError:
    """A daemon that has no time for us is as unknown as one that is not there."""
    if error.exit_code == EXIT_UNKNOWN and not isinstance(error, UnreachableError):
        return UnreachableError(error.message, where=error.where, hint=error.hint)
    return error
