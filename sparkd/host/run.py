"""The one door for subprocesses: each call has a time limit, a log line to paste into a shell, a true ending."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal as signals
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparkd.model.errors import SparkdError

log = logging.getLogger(__name__)

AFTER_KILL_S = 5.0  # how long a killed command's output is still collected: a stray child may hold the pipe open


@dataclass(frozen=True)
class Ran:
    """A command that ended. Exactly one of `status` (it exited) and `signal` (it was killed) is set."""

    argv: tuple[str, ...]
    status: int | None
    signal: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def ending(self) -> str:
        """How it ended, for a person: "exited with status 127 (program or script not found)"."""
        return ending(self.status if self.signal is None else -self.signal)


def ending(code: int | None) -> str:
    """Of a status as Python gives it: a signal is negative."""
    if code is not None and code < 0:
        return f"was killed by {signal_name(-code)}"
    meaning = {126: " (found, but not executable)", 127: " (program or script not found)"}.get(code or 0, "")
    return f"exited with status {code}{meaning}"


def signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    input: str | None = None,
    check: bool = False,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Runs a command to its end in a process group of its own. `env` is the whole environment, ours where None.

    Raises SparkdError when the program is missing or cannot be executed, when it takes longer than `timeout_s` (its
    whole group is killed), and, with `check`, when it does not exit with 0.
    """
    argv = tuple(argv)
    line = shlex.join(argv)
    log.debug("+ %s", line)
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=env,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise SparkdError(f"{argv[0]}: no such program", where=line, hint=f"install {argv[0]}, or mend PATH") from None
    except OSError as error:
        raise SparkdError(f"cannot run {argv[0]}: {error.strerror}", where=line) from None

    try:
        stdout, stderr = process.communicate(input, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        raise SparkdError(f"did not end within {timeout_s:g} s and was killed", where=line) from None
    except BaseException:  # an interrupt must not leave the command behind
        _kill_group(process)
        raise

    code = process.returncode
    ran = Ran(
        argv=argv,
        status=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        stdout=stdout,
        stderr=stderr,
        seconds=time.monotonic() - began,
    )
    log.debug("  %s %s after %.3f s", argv[0], ran.ending, ran.seconds)
    if check and not ran.ok:
        said = (stderr.strip() or stdout.strip()).splitlines()
        raise SparkdError(ran.ending + (f": {said[-1]}" if said else ""), where=line)
    return ran


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kills and reaps. The group is still ours: its leader has not been waited for, so its number is not reused."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signals.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=AFTER_KILL_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
