"""What marks a process as an engine's, read from the bytes that /proc shows. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from sparkd.model.plan import LAUNCH_ID_VARIABLE

TITLE = "VLLM::"

_LAUNCH_ID = re.compile(r"[0-9a-f]{8}-[0-9]+")  # as model.report.launch_id writes it
_CONTAINER = re.compile(rb"(?:/docker/|docker-)([0-9a-f]{64})")  # cgroup v1, and v2 under systemd
_USERS_OWN = re.compile(rb"/user@(?!0\.service)")
_VARIABLE = LAUNCH_ID_VARIABLE.encode() + b"="


def argv(cmdline: bytes) -> tuple[str, ...]:
    """/proc/PID/cmdline as an argv, empty arguments included; a title is one word."""
    words = cmdline.removesuffix(b"\0").split(b"\0")
    if words[0].startswith(TITLE.encode()):  # padded with NULs to the length of the argv that it overwrote
        words = words[:1]
    return tuple(os.fsdecode(word) for word in words)


def environment(environ: bytes) -> dict[str, str]:
    pairs = (entry.partition(b"=") for entry in environ.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, equals, value in pairs if equals}


def launch_id(environ: bytes) -> str | None:
    """The launch id in /proc/PID/environ; None where there is none, or one that sparkd did not write."""
    if environ.startswith(_VARIABLE):
        start = len(_VARIABLE)
    elif (before := environ.find(b"\0" + _VARIABLE)) >= 0:
        start = before + 1 + len(_VARIABLE)
    else:
        return None
    value = os.fsdecode(environ[start:].partition(b"\0")[0])
    return value if _LAUNCH_ID.fullmatch(value) else None


def container_id(cgroup: bytes) -> str | None:
    """The Docker container in /proc/PID/cgroup. The innermost: the one that this node's Docker made.

    Below a user's own service manager that user names the groups, and may name one as Docker does.
    """
    if _USERS_OWN.search(cgroup):
        return None
    found = _CONTAINER.findall(cgroup)
    return found[-1].decode("ascii") if found else None


def is_serve_command(argv: Sequence[str]) -> bool:
    """`vllm serve ...`, as a script under an interpreter too, or the server as a module.

    A command that only mentions one (`docker exec C vllm serve`, `bash -c "vllm serve"`) is not it.
    """
    words = list(argv)
    if words and PurePosixPath(words[0]).name.startswith("python"):
        while len(words) > 1 and words[1].startswith("-") and words[1] != "-m":
            del words[1]
        if words[1:2] == ["-m"]:
            return any(module.startswith("vllm.entrypoints.") for module in words[2:3])
        del words[0]
    return len(words) > 1 and PurePosixPath(words[0]).name == "vllm" and words[1] == "serve"
