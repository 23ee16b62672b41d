"""`sparkd autopsy LOG`: what an engine died of. Asked by the daemon, which does not keep the catalogue in its own memory."""

from __future__ import annotations

from pathlib import Path

import click

from sparkd.cli import output

TAIL_BYTES = 256 * 1024


@click.command(hidden=True)
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(min=0), required=True)
@click.option("--status", type=int, help="The exit status of its unit's main process.")
@click.option("--signal", type=int, help="The signal that killed it.")
def autopsy(log: Path, rank: int, status: int | None, signal: int | None) -> None:
    """Print what the end of a launch means as a finding (JSON), from the tail of its LOG and how its unit ended."""
    from sparkd.doctor.endings import classify_end
    from sparkd.host import files

    try:
        tail = files.tail(log, TAIL_BYTES)
    except OSError:
        tail = ""  # it never wrote one: then the status has to tell
    output.say(classify_end(tail, status=status, signal=signal, rank=rank).model_dump_json())
