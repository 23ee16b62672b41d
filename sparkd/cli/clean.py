"""`sparkd clean`: what engines left behind on this node, and away with what is proven to be ours."""

from __future__ import annotations

from pathlib import Path

import click

from sparkd.agent import local
from sparkd.cli import daemon, output
from sparkd.cli.options import config_option, node_option
from sparkd.model.errors import UnreachableError

CLEAN_MAX_S = 120.0  # a stale headless worker takes 12 s to go, dropping a full page cache some more


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be done, and what would be left alone.")
@config_option
@node_option
@output.json_option
def clean(dry_run: bool, config_path: Path, node: str | None, as_json: bool) -> None:
    """End stale engine processes and remove leftover shared memory on this node.

    Touches nothing that cannot be proven to be sparkd's own, and never the launch that is meant to live. Works without a
    running daemon too.

    Exit status: 0 done, 2 it could not be.
    """
    try:
        lines = [str(line) for line in daemon.ask("clean", timeout_s=CLEAN_MAX_S, dry_run=dry_run)["lines"]]
    except local.DeniedError:
        raise
    except UnreachableError as error:
        lines = _without_daemon(config_path, node, dry_run=dry_run)
        output.note(f"done without the daemon: {error.message}")
    if as_json:
        output.say_json({"dry_run": dry_run, "lines": lines})
    else:
        output.say("\n".join(lines))


def _without_daemon(config_path: Path, node: str | None, *, dry_run: bool) -> list[str]:
    from sparkd.cli.here import configured_here
    from sparkd.doctor.fixes import without_daemon
    from sparkd.engine.cleaning import TIDIED

    return without_daemon(configured_here(config_path, node), dry_run=dry_run)(TIDIED)
