"""`sparkd events`: every decision that this node took, in its own words."""

from __future__ import annotations

from typing import Any

import click

from sparkd.cli import daemon, output
from sparkd.model.errors import UnreachableError

Event = dict[str, Any]

READ_MAX_BYTES = 2 << 20  # the daemon turns its file over at one


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones, until interrupted.")
@click.option("-n", "count", type=click.IntRange(min=0), default=50, show_default=True, help="How many past ones.")
@output.json_option
def events(follow: bool, count: int, as_json: bool) -> None:
    """Show what this node decided and did, oldest first (with --json one object a line)."""
    paint = output.painter(output.colours_wanted())
    shown = 0
    try:
        for event in daemon.stream("events", follow=follow, last=count):
            _say(event, as_json, paint)
            shown += 1
    except UnreachableError as error:
        if follow or shown:
            raise
        past = _on_disk(count)
        if not past:
            raise
        for event in past:
            _say(event, as_json, paint)
        output.note(f"these are from the disk: {error.message}")


def line(event: Event, paint: Any = lambda text, colour: text) -> str:
    """`11-21 10:53:04.123  epoch 18  loading   engine.progress: weights 12/46 shards`"""
    at = str(event.get("at", ""))
    when = f"{at[5:10]} {at[11:23]}" if len(at) >= 19 else at
    text = f"{event['id']}: {event['says']}"
    return f"{when}  epoch {event.get('epoch', '?'):<4} {event.get('phase', ''):<9}  " + (
        paint(text, "red") if event.get("alarm") else text
    )


def _say(event: Event, as_json: bool, paint: Any) -> None:
    if as_json:
        output.say_json(event, lines=True)
    else:
        output.say(line(event, paint))


def _on_disk(count: int) -> list[Event]:
    """The last events that the daemon wrote; nothing where they cannot be read."""
    from sparkd.host import event_file
    from sparkd.host.paths import Paths

    try:
        found = event_file.read(Paths.from_environment().events, READ_MAX_BYTES)
    except OSError:
        return []
    return found[-count:] if count else []
