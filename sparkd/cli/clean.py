"""`sparkd clean`: what engines left behind on this node, and away with what is proven to be ours."""

from __future__ import annotations

from pathlib import Path

import click

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
    """
    try:
        lines = [str(line) for line in daemon.ask("clean", timeout_s=CLEAN_MAX_S, dry_run=dry_run)["lines"]]
    except UnreachableError as error:
        lines = _without_daemon(config_path, node, dry_run=dry_run)
        output.note(f"done without the daemon: {error.message}")
    if as_json:
        output.say_json({"dry_run": dry_run, "lines": lines})
    else:
        output.say("\n".join(lines))


def _without_daemon(config_path: Path, node: str | None, *, dry_run: bool) -> list[str]:
    """The daemon's own code, run here. An engine that serves while its agent is stopped is spared as under the agent."""
    from sparkd.config.identity import identify_here
    from sparkd.config.load import load, plan_for
    from sparkd.engine import cleaning
    from sparkd.engine.container import Docker
    from sparkd.host.paths import Paths

    configuration = load(config_path)
    cluster = configuration.settings.cluster
    plan = plan_for(configuration).ranks[cluster.nodes.index(identify_here(cluster, node))]
    return cleaning.tidy(
        plan,
        Docker(),
        living_launch=cleaning.launch_by_unit(Paths.from_environment().launch_file),
        dry_run=dry_run,
    )
