"""Processes as vLLM has them: forked children under titles of their own, in the parent's environment."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def set_title(title: str) -> None:
    """Makes `title` this process's command line and name, as the setproctitle package does.

    The argument area is overwritten in place and padded with NULs; the kernel cuts the name (comm) at 15 bytes. The
    environment behind it stays readable in /proc/PID/environ.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: fields 48 and 49 of proc(5)
    area = title.encode()[: end - start - 1].ljust(end - start, b"\0")
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(area)
    Path("/proc/self/comm").write_text(title)


def fork(target: Callable[[], int]) -> int:
    """Runs `target` in a forked child, whose exit status it returns, and gives the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = target()
    except BaseException:
        traceback.print_exc()  # a mistake in the simulator itself
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def leave(status: int) -> NoReturn:
    """Ends this process at once. What it shared is left to the resource tracker, as by the real one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def exit_code(pid: int) -> int | None:
    """The exit code of a child that ended, negative for a signal; None if somebody else reaped it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None


def kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_gone(pidfd: int, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])


class SignalPipe:
    """Signals as something to select on. Only the main thread may make one."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        os.set_blocking(self._read, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        try:
            return list(os.read(self._read, 64))
        except BlockingIOError:
            return []


def default_signals() -> None:
    """Gives a forked child the signal handling of a fresh process."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
