"""The one error type that reaches an operator: what is wrong, where, and what to do."""

from __future__ import annotations

# Exit codes of every command (sysexits for usage; the others are sparkd's own scale).
EXIT_GOOD = 0
EXIT_WARNINGS = 1
EXIT_FAILED = 2
EXIT_UNKNOWN = 3
EXIT_USAGE = 64


class SparkdError(Exception):
    """A failure whose cause is known, raised where it is known and printed once at the edge.

    `where` is a place such as "sparkd.yaml:12: cluster.nodes[1].link_address" or a unit name;
    `hint` is the remedy, a sentence or a command.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}"


class ConfigError(SparkdError):
    """The configuration cannot be used; nothing was started because of it. `id` is that of the finding that it becomes."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, where: str = "", hint: str = "", id: str = "config.invalid") -> None:
        super().__init__(message, where=where, hint=hint)
        self.id = id


class UsageError(SparkdError):
    """The command was called in a way it does not understand."""

    exit_code = EXIT_USAGE


class UnreachableError(SparkdError):
    """The daemon, the peer or Docker did not answer: the truth is unknown, not bad."""

    exit_code = EXIT_UNKNOWN
