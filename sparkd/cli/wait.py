"""`sparkd wait --ready`: return when the cluster answers."""

from __future__ import annotations

import time
from typing import Any

import click

from sparkd.cli import daemon, output
from sparkd.cli.options import Seconds
from sparkd.cli.table import blocked, duration, status_line
from sparkd.model.errors import EXIT_GOOD, SparkdError, UnreachableError

POLL_S = 0.5


class NotReadyError(SparkdError):
    """The daemon answered, the cluster does not serve."""


@click.command()
@click.option("--ready", is_flag=True, required=True, help="Wait until a real completion came back.")
@click.option("--timeout", "timeout_s", type=Seconds(), default="15m", show_default=True, help="How long at most.")
@click.option("--even-blocked", is_flag=True, help="Go on waiting while a person has to act.")
@output.json_option
def wait(ready: bool, timeout_s: float, even_blocked: bool, as_json: bool) -> int:
    """Wait until the cluster serves: proven by an answer, not by an open port.

    Waits for the daemon too, so it may be called before sparkd runs.

    Exit status: 0 it serves, 2 blocked or out of time, 3 no daemon answered in that time.
    """
    began = time.monotonic()
    deadline = began + timeout_s
    while True:
        answer, error = _look()
        if answer is not None and answer["serving"]:
            _say_ready(answer, time.monotonic() - began, as_json)
            return EXIT_GOOD
        finding = blocked(answer) if answer is not None else None
        if finding is not None and not even_blocked:
            raise NotReadyError(finding["says"], where=finding["id"], hint=finding.get("remedy", ""))
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise error or _out_of_time(answer, timeout_s)
        time.sleep(min(POLL_S, left_s))


def _look() -> tuple[dict[str, Any] | None, UnreachableError | None]:
    try:
        return daemon.ask("status"), None
    except UnreachableError as error:
        return None, error


def _say_ready(answer: dict[str, Any], waited_s: float, as_json: bool) -> None:
    if as_json:
        output.say_json({"ready": True, "waited_s": round(waited_s, 1), "endpoint": answer["endpoint"]})
    else:
        output.say(f"ready after {duration(waited_s)}: {answer['endpoint']}")


def _out_of_time(answer: dict[str, Any] | None, timeout_s: float) -> NotReadyError:
    stands = status_line(answer) if answer is not None else "nothing is known"
    hint = "`sparkd status` says what it waits for; give it longer with --timeout"
    return NotReadyError(f"not ready after {duration(timeout_s)}: {stands}", where="wait", hint=hint)
