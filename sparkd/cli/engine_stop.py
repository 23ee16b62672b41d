"""`sparkd engine-stop LAUNCH`: what sparkd-engine.service calls when it stops and finds something of its launch left."""

from __future__ import annotations

import click

from sparkd.cli import output
from sparkd.model.errors import SparkdError

GRACE_S = 20.0  # a headless worker needs 11 to 12 s to wind down


@click.command(hidden=True)
@click.argument("launch")
def engine_stop(launch: str) -> None:
    """End every process of LAUNCH on this node: asked, waited for, then killed."""
    from sparkd.host.processes import end, engine_processes

    for grace_s in (GRACE_S, 1.0):  # once more, for a child that was born while the others were ended
        found = [process for process in engine_processes() if process.launch_id == launch]
        if not found:
            break
        ended = end(found, grace_s=grace_s)
        output.say(
            f"launch {launch}: {len(ended.terminated)} processes ended, {len(ended.killed)} killed in {ended.seconds:.1f} s"
        )
        if ended.survivors:
            pids = ", ".join(map(str, ended.survivors))
            raise SparkdError(f"processes {pids} of launch {launch} survived SIGKILL", hint="reboot the node")
