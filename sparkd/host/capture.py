"""A command whose output is large and bounded, run beside the loop. The same door as run.py, for those who must not wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal as signals
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparkd.host.run import ending
from sparkd.model.errors import SparkdError

log = logging.getLogger(__name__)

ERRORS_MAX_BYTES = 4096  # of what it said on its standard error: for the words of a failure
AFTER_KILL_S = 2.0


async def capture(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_bytes: int,
    env: Mapping[str, str] | None = None,
    good: Sequence[int] = (0,),
) -> bytes:
    """What the command prints, ended with one of the statuses `good`: a status other than 0 means something only beside an
    output. It runs in a process group of its own.

    Raises SparkdError where it cannot be run, takes longer than `timeout_s` or prints more than `max_bytes` (then the
    whole group is killed), or ends otherwise. Cancelled, it leaves nothing running.
    """
    line = shlex.join(argv)
    log.debug("+ %s", line)
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=null, stdout=pipe, stderr=pipe, env=env, start_new_session=True
        )
    except OSError as error:
        raise SparkdError(f"cannot run {argv[0]}: {error.strerror}", where=line) from None
    assert process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(timeout_s):
            output, said = await asyncio.gather(_read(process.stdout, max_bytes), _last(process.stderr))
            status = await process.wait()
    except TimeoutError:
        raise SparkdError(f"did not end within {timeout_s:g} s and was killed", where=line) from None
    except _TooMuchError:
        raise SparkdError(f"printed more than {max_bytes} bytes and was killed", where=line) from None
    finally:
        await _end(process)
    if status not in good or (status and not output):
        raise SparkdError(ending(status) + (f": {said}" if said else ""), where=line)
    return output


class _TooMuchError(Exception):
    pass


async def _read(stream: asyncio.StreamReader, max_bytes: int) -> bytes:
    output = bytearray()
    while part := await stream.read(65536):
        output += part
        if len(output) > max_bytes:
            raise _TooMuchError
    return bytes(output)


async def _last(stream: asyncio.StreamReader) -> str:
    """The last line."""
    kept = b""
    while part := await stream.read(ERRORS_MAX_BYTES):
        kept = (kept + part)[-ERRORS_MAX_BYTES:]
    lines = kept.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


async def _end(process: asyncio.subprocess.Process) -> None:
    """Nothing of it is left, whatever ended the wait: not what it started and left behind either.

    While a member of its group lives, the kernel gives the group's number to nobody. Where the leader has been waited for
    and there is a process of that number all the same, the whole group was gone and the number is another's.
    """
    if process.returncode is None or not Path(f"/proc/{process.pid}").exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signals.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(process.wait()), AFTER_KILL_S)
    process._transport.close()  # type: ignore[attr-defined]  # pipes that a stray child holds open
