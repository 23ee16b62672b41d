"""What the daemon has done by a short-lived sparkd of its own, so that it stays small: the doctor, the baseline."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sparkd.host.capture import capture
from sparkd.model.errors import EXIT_FAILED, EXIT_GOOD, EXIT_UNKNOWN, EXIT_WARNINGS, SparkdError
from sparkd.model.outside import parsed
from sparkd.peer.wire import DIAGNOSE_MAX_S, DIAGNOSIS_MAX_BYTES

EXAMINED = (EXIT_GOOD, EXIT_WARNINGS, EXIT_FAILED, EXIT_UNKNOWN)  # a doctor that found something did its work
EXAMINATION_MAX_BYTES = 2 * DIAGNOSIS_MAX_BYTES  # it is printed indented
SAID_MAX_BYTES = 64 * 1024

CHILD = "SPARKD_CHILD"  # cli/main.py: gives up the daemon's protection from the OOM killer

# Of this process alone: a child must not feed the watchdog, nor say READY.
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "SPARKD_LAUNCH_ID")


PROGRAM = (sys.executable, "-m", "sparkd")


def environment(**more: str) -> dict[str, str]:
    """For a child of the daemon: it neither speaks to systemd in its name nor is spared by the OOM killer."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return {**kept, "NO_COLOR": "1", CHILD: "1", **more}


class Ourselves:
    """This installation's `sparkd` with this daemon's configuration. `program` is how it is called."""

    def __init__(self, configuration: Path, node: str, *, program: Sequence[str] = PROGRAM) -> None:
        self._program = tuple(program)
        self._environment = environment(SPARKD_CONFIG=str(configuration), SPARKD_NODE=node)
        self._examining: asyncio.Task[bytes] | None = None
        self._baseline = asyncio.Lock()

    async def diagnosis(self) -> bytes:
        """This node's Diagnosis, as JSON in one line: one run at a time, shared by all who ask meanwhile.

        Not longer: who asks again has mended something. Raises SparkdError where there is none within 8 s.
        """
        if self._examining is None:
            self._examining = asyncio.create_task(self._examine())
            self._examining.add_done_callback(self._forget)
        return await asyncio.shield(self._examining)  # an asker that goes away takes nobody else's answer along

    def _forget(self, task: asyncio.Task[bytes]) -> None:
        """The bytes are not kept."""
        self._examining = None
        if not task.cancelled():
            task.exception()  # it may be that nobody waits any more

    async def _examine(self) -> bytes:
        argv = (*self._program, "doctor", "--json", "--no-peer")
        printed = await capture(
            argv, timeout_s=DIAGNOSE_MAX_S, max_bytes=EXAMINATION_MAX_BYTES, env=self._environment, good=EXAMINED
        )
        return await asyncio.to_thread(only_node, printed)

    async def write_baseline(self, epoch: int, *, limit_s: float) -> str:
        """What `sparkd baseline` says of it. Raises SparkdError."""
        argv = (*self._program, "baseline", "--epoch", str(epoch))
        async with self._baseline:
            said = await capture(argv, timeout_s=limit_s, max_bytes=SAID_MAX_BYTES, env=self._environment)
        lines = said.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else f"the baseline of epoch {epoch} is written"

    async def close(self) -> None:
        if self._examining is not None:
            self._examining.cancel()
            await asyncio.gather(self._examining, return_exceptions=True)


def only_node(examination: bytes) -> bytes:
    """The one Diagnosis of an Examination, in one line. Not validated here: whoever shows it does."""
    try:
        told = parsed(examination)
        if "error" in told:
            raise SparkdError(f"its doctor failed: {told['error']['message']}", hint="sparkd doctor")
        nodes = told["nodes"]
        if not isinstance(nodes[0], dict):
            raise TypeError
        return json.dumps(nodes[0], ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise SparkdError("what the doctor of this node said is no examination", hint="sparkd doctor") from None
