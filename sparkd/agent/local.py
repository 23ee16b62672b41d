"""The local control socket, as the commands use it. Imports next to nothing: `sparkd status` must be quick.

The path is `Paths.socket`. One line of JSON is the request, `{"verb": "status", ...}`; one or more lines are the
answer; then the daemon closes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparkd.model.errors import EXIT_FAILED, SparkdError, UnreachableError
from sparkd.model.outside import parsed

GROUP = "sparkd"
ANSWER_MAX_S = 10.0
LINE_MAX_BYTES = 4 * 1024 * 1024


class DeniedError(UnreachableError):
    """There may well be a daemon; this user may not ask it."""


def ask(path: Path, verb: str, *, timeout_s: float = ANSWER_MAX_S, **fields: Any) -> dict[str, Any]:
    """The daemon's one answer (the first, where it has more).

    Raises UnreachableError where no daemon answers within `timeout_s`, SparkdError with the daemon's own words where
    it will not.
    """
    for answer in stream(path, verb, timeout_s=timeout_s, **fields):
        return answer
    raise UnreachableError("sparkd gave no answer", where=str(path), hint="journalctl -u sparkd -n 50")


def stream(path: Path, verb: str, *, timeout_s: float | None = None, **fields: Any) -> Iterator[dict[str, Any]]:
    """The daemon's answers as they come; close the iterator to stop. Raises as `ask` does.

    `timeout_s` limits the wait for each single answer; None: for as long as the daemon lives (`events --follow`).
    """
    with _connected(path, ANSWER_MAX_S) as connection:
        try:
            connection.sendall(json.dumps({**fields, "verb": verb}).encode() + b"\n")
        except ConnectionError:
            pass  # refused before it was read (too many clients): the reason waits to be read
        except TimeoutError:
            raise _silent(path, ANSWER_MAX_S) from None
        connection.settimeout(timeout_s)
        with connection.makefile("rb") as lines:
            while line := _line(lines, path, timeout_s):
                yield _answer(line, path)


def no_member(uid: int, group: str) -> str:
    return f"sparkd answers root and members of the group {group}; you are user {uid}, and not one of them"


def how_to_join(group: str) -> str:
    return f"sudo usermod -aG {group} USER and log in again, or use sudo"


def _connected(path: Path, limit_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(limit_s)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise UnreachableError(
            "sparkd is not running on this node", where=str(path), hint="systemctl start sparkd"
        ) from None
    except PermissionError:
        connection.close()
        raise DeniedError(no_member(os.getuid(), GROUP), where=str(path), hint=how_to_join(GROUP)) from None
    except OSError as error:
        connection.close()
        raise UnreachableError(
            f"sparkd cannot be asked: {error.strerror or error}", where=str(path), hint="journalctl -u sparkd -n 50"
        ) from None
    return connection


def _line(lines: Any, path: Path, timeout_s: float | None) -> bytes:
    """The next line, or nothing at the end."""
    try:
        line: bytes = lines.readline(LINE_MAX_BYTES)
    except TimeoutError:
        raise _silent(path, timeout_s) from None
    except ConnectionError:
        raise _cut(path) from None
    if line and not line.endswith(b"\n"):
        raise _cut(path)
    return line


def _cut(path: Path) -> UnreachableError:
    return UnreachableError("sparkd ended before its answer did", where=str(path), hint="journalctl -u sparkd -n 50")


def _answer(line: bytes, path: Path) -> dict[str, Any]:
    try:
        answer = parsed(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SparkdError("what answers is not sparkd", where=str(path))
    told = answer.get("error")
    if isinstance(told, dict):
        error = SparkdError(
            str(told.get("message", "")), where=str(told.get("where", "")), hint=str(told.get("hint", ""))
        )
        error.exit_code = int(told.get("exit_code", EXIT_FAILED))
        raise error
    return answer


def _silent(path: Path, limit_s: float | None) -> UnreachableError:
    return UnreachableError(
        f"sparkd did not answer within {limit_s or 0:g} s", where=str(path), hint="journalctl -u sparkd -n 50"
    )
