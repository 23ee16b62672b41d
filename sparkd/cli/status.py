"""`sparkd status`: how the cluster stands, as this node's daemon knows it."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from sparkd.cli import daemon, output, table
from sparkd.model.errors import EXIT_FAILED, EXIT_GOOD, EXIT_UNKNOWN, EXIT_WARNINGS, UnreachableError

WATCH_S = 1.0  # ages and ETAs are shown in whole seconds


@click.command()
@click.option("--watch", is_flag=True, help="Go on showing it, until interrupted.")
@output.json_option
def status(watch: bool, as_json: bool) -> int:
    """Show both nodes: phase, progress, epoch, proof, and what keeps the cluster from serving.

    Exit status: 0 serving, 1 not serving yet (or stopped), 2 blocked, 3 the daemon did not answer.
    """
    if watch:
        return _watch(as_json)
    try:
        answer = daemon.ask("status")
    except UnreachableError as error:
        return _without_daemon(error, as_json)
    if as_json:
        output.say_json(answer)
    else:
        output.say(table.status_text(answer, output.painter(output.colours_wanted())))
    return exit_code(answer)


def exit_code(answer: dict[str, Any]) -> int:
    """Serving is good; blocked, here or on a peer, needs a person; everything else is on its way."""
    if answer["serving"]:
        return EXIT_GOOD
    return EXIT_FAILED if table.blocked(answer) else EXIT_WARNINGS


# --- watching ------------------------------------------------------------------------------------


def _watch(as_json: bool) -> int:
    """On a terminal the picture is redrawn; into a pipe goes a line for each change."""
    redraw = sys.stdout.isatty() and not as_json
    paint = output.painter(output.colours_wanted())
    last = ""
    while True:
        try:
            answer = daemon.ask("status")
        except UnreachableError as error:
            answer, text = {"error": {"message": error.message}}, f"the daemon does not answer: {error.message}"
        else:
            text = table.status_text(answer, paint) if redraw else table.status_line(answer)
        now = time.strftime("%H:%M:%S")
        if as_json:
            output.say_json(answer, lines=True)
        elif redraw:
            output.say(f"{output.CLEAR}{text}\n\n{now}  (Ctrl-C ends this)")
        elif text != last:
            output.say(f"{now} {text}")
        last = text
        time.sleep(WATCH_S)


# --- without a daemon ----------------------------------------------------------------------------


def _without_daemon(error: UnreachableError, as_json: bool) -> int:
    """The truth is unknown. What systemd knows of the units is said beside it."""
    units = {name: _unit(name) for name in ("sparkd.service", "sparkd-engine.service")}
    output.error(error.message, where=error.where, hint=error.hint)
    if as_json:
        told = {"message": error.message, "where": error.where, "hint": error.hint}
        output.say_json({"error": told, "serving": None, "units": units})
    else:
        for name, facts in units.items():
            output.say(f"{name}: {facts or 'cannot be seen (no answer from systemd)'}")
    return EXIT_UNKNOWN


def _unit(name: str) -> str:
    """What systemd knows of a unit, in a line; empty where it cannot be asked."""
    from sparkd.host.run import run
    from sparkd.model.errors import SparkdError

    wanted = "LoadState,ActiveState,SubState,Result,NRestarts,StatusText"
    try:
        ran = run(["systemctl", "show", name, f"--property={wanted}"], timeout_s=5)
    except SparkdError:
        return ""
    facts = dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)
    if not ran.ok or not facts:
        return ""
    if facts.get("LoadState") == "not-found":
        return "not installed"
    said = f"{facts.get('ActiveState')} ({facts.get('SubState')})"
    if facts.get("Result", "success") != "success":
        said += f", last result {facts['Result']}"
    if facts.get("NRestarts", "0") not in ("", "0"):
        said += f", restarted {facts['NRestarts']} times"
    return said + (f": {facts['StatusText']}" if facts.get("StatusText") else "")
