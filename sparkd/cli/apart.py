"""Carrying a command out in a process of its own, so that whoever waits for the command is not kept by a hung kernel call."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sparkd.cli import output
from sparkd.model.errors import EXIT_FAILED, EXIT_GOOD, SparkdError, UnreachableError

Found = TypeVar("Found")
TELLS = b"\xff"  # no exit status of ours: the work is done, and what came of it is being printed


def apart(work: Callable[[], Found], tell: Callable[[Found], int], *, until: float) -> int:
    """Does the work in a child, and leaves as soon as that has told everything, or at `until` (monotonic clock) where the
    work is not done by then: what is being told is never cut. Returns, or ends with, the exit status of `tell`.

    A thread that hangs in the kernel (a dead mount, a driver that does not answer) cannot even be killed, and keeps the
    process that it belongs to from ending, `os._exit` or not: whoever waits for that process waits with it. So the process
    that people wait for is one that never looked at anything.
    """
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        status = EXIT_FAILED
        try:
            status = _finished(work, tell, telling)
        finally:
            _leave(telling, status)
    os.close(telling)
    try:
        ready, _, _ = select.select([told], [], [], max(0.1, until - time.monotonic()))
        said = os.read(told, 1) if ready else b""
        if said == TELLS:
            said = os.read(told, 1)
    except KeyboardInterrupt:
        _end(child)
        raise
    if said:
        os._exit(said[0])  # nothing of ours is left to be written, and nothing may be waited for
    if not ready:
        _end(child)
        raise UnreachableError(
            "the examination itself hangs", hint="a dead mount? cat /proc/mounts; journalctl -k | tail"
        )
    os.waitpid(child, 0)  # it died before it could say anything
    raise UnreachableError("the examination was killed", hint="journalctl -k | tail: the out-of-memory killer?")


def _finished(work: Callable[[], Found], tell: Callable[[Found], int], telling: int) -> int:
    """The exit status, all output written. What fails is told as by every command."""
    try:
        found = work()
        os.write(telling, TELLS)
        status = tell(found)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `sparkd doctor | head`
        return EXIT_GOOD
    except SparkdError as error:
        output.report_error(error, as_json="--json" in sys.argv)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the edge: this process has no caller
        if os.environ.get("SPARKD_DEBUG"):
            raise
        hint = "this is a fault of sparkd itself; the same command with SPARKD_DEBUG=1 shows where"
        output.error(f"{type(error).__name__}: {error}", where="unforeseen", hint=hint)
        return EXIT_FAILED


def _leave(telling: int, status: int) -> None:
    """Gives the terminal or pipe back first: a reader waits for its end. `os._exit`, because threads may hang."""
    os.environ["PATH"] = "/nonexistent"  # a thread whose tool is ended would go on and start the next one
    for _ in range(2):  # one may have been on its way
        _end_children("self")
        time.sleep(0.005)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.write(telling, bytes([status]))
    os._exit(status)


def _end(child: int) -> None:
    """It, and what it started. Stopped first: so it starts nothing more, and its children's numbers stay theirs."""
    with contextlib.suppress(OSError):
        os.kill(child, signal.SIGSTOP)
        _end_children(str(child))
    os.kill(child, signal.SIGKILL)


def _end_children(parent: str) -> None:
    """Programs that a process started and that still run: each would otherwise outlive it for ever."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in map(int, (task / "children").read_text().split()):
                with contextlib.suppress(OSError):  # those that may hang lead groups of their own (host/run.py)
                    os.killpg(pid, signal.SIGKILL)
