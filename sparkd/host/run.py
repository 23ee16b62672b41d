"""The one door for subprocesses: each call has a time limit, a log line to paste into a shell, a true ending."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shlex
import signal as signals
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from sparkd.model.errors import SparkdError

log = logging.getLogger(__name__)

OUTPUT_MAX_BYTES = 32 << 20  # of both outputs together: `journalctl -o json` of a bad boot has some MB
PART_BYTES = 64 * 1024
AFTER_KILL_S = 5.0  # a killed command is waited for; longer only where the kernel does not let it go


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
    max_bytes: int = OUTPUT_MAX_BYTES,
) -> Ran:
    """Runs a command to its end in a process group of its own. `env` is the whole environment, ours where None.

    Raises SparkdError when the program is missing or cannot be executed, when it takes longer than `timeout_s` (its
    whole group is killed) or prints more than `max_bytes` (likewise), and, with `check`, when it does not exit with 0.
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
            env=env,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise SparkdError(f"{argv[0]}: no such program", where=line, hint=f"install {argv[0]}, or mend PATH") from None
    except OSError as error:
        raise SparkdError(f"cannot run {argv[0]}: {error.strerror}", where=line) from None

    try:
        stdout, stderr = _communicate(process, (input or "").encode(), began + timeout_s, max_bytes)
    except _TooMuchError:
        _kill_group(process)
        raise SparkdError(f"printed more than {max_bytes} bytes and was killed", where=line) from None
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


class _TooMuchError(Exception):
    pass


def _communicate(process: subprocess.Popen[bytes], given: bytes, until: float, max_bytes: int) -> tuple[str, str]:
    """`Popen.communicate` with a limit to what is kept. Raises TimeoutExpired, _TooMuchError."""
    assert process.stdout is not None and process.stderr is not None
    outputs = {process.stdout: bytearray(), process.stderr: bytearray()}
    unsent = memoryview(given)
    with selectors.DefaultSelector() as waiting:
        for pipe in outputs:
            waiting.register(pipe, selectors.EVENT_READ)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            waiting.register(process.stdin, selectors.EVENT_WRITE)
        while waiting.get_map():
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise subprocess.TimeoutExpired(process.args, 0)
            for key, _ in waiting.select(left_s):
                if key.fileobj is process.stdin:
                    unsent = _sent(process.stdin, unsent)
                    if not unsent:
                        waiting.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, PART_BYTES)
                if not part:
                    waiting.unregister(key.fileobj)
                    continue
                outputs[key.fileobj] += part  # type: ignore[index]
                if sum(map(len, outputs.values())) > max_bytes:
                    raise _TooMuchError
    process.wait(max(0.0, until - time.monotonic()))
    for pipe in outputs:
        pipe.close()
    stdout, stderr = (bytes(output).decode("utf-8", "replace") for output in outputs.values())
    return stdout, stderr


def _sent(pipe: IO[bytes], unsent: memoryview) -> memoryview:
    """What is left to be sent; nothing where nobody reads it any more."""
    try:
        return unsent[os.write(pipe.fileno(), unsent[:PART_BYTES]) :]
    except BlockingIOError:
        return unsent
    except BrokenPipeError:
        return unsent[:0]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills and reaps. The group is still ours: its leader has not been waited for, so its number is not reused."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signals.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=AFTER_KILL_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
