"""`sparkd clean`: what engines left behind on this node, and away with what is proven to be ours."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from sparkd.cli import daemon, output
from sparkd.cli.options import config_option, node_option
from sparkd.model.errors import UnreachableError

CLEAN_MAX_S = 120.0  # a stale headless worker takes 12 s to go, dropping a full page cache some more


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be done, and what would be left alone.")
@click.option(
    "--fix", is_flag=True, help="Also repair a patch that was applied twice in the container (with a backup)."
)
@config_option
@node_option
@output.json_option
def clean(dry_run: bool, fix: bool, config_path: Path, node: str | None, as_json: bool) -> None:
    """End stale engine processes and remove leftover shared memory on this node.

    Touches nothing that cannot be proven to be sparkd's own, and never the launch that is meant to live. Works without a
    running daemon too.
    """
    try:
        lines = [str(line) for line in daemon.ask("clean", timeout_s=CLEAN_MAX_S, dry_run=dry_run, fix=fix)["lines"]]
    except UnreachableError as error:
        lines = _without_daemon(config_path, node, dry_run=dry_run, fix=fix)
        output.note(f"done without the daemon: {error.message}")
    if as_json:
        output.say_json({"dry_run": dry_run, "lines": lines})
    else:
        output.say("\n".join(lines))


def _without_daemon(config_path: Path, node: str | None, *, dry_run: bool, fix: bool) -> list[str]:
    """The daemon's own code, run here. An engine that serves while its agent is stopped is spared as under the agent."""
    from sparkd.agent import cleaning
    from sparkd.config.identity import identify_here
    from sparkd.config.load import load, plan_for
    from sparkd.engine.container import Docker

    configuration = load(config_path)
    cluster = configuration.settings.cluster
    plan = plan_for(configuration).ranks[cluster.nodes.index(identify_here(cluster, node))]
    return cleaning.tidy(plan, Docker(), living_launch=_living_launch(), dry_run=dry_run, fix=fix)


def _living_launch() -> str | None:
    """The launch whose unit is active, or may be: it is spared where systemd cannot be asked.

    Its file lies in /run, so it is of this boot and of the last launch, whatever became of the daemon's own state.
    """
    from sparkd.agent.paths import Paths
    from sparkd.host.run import run
    from sparkd.model.errors import SparkdError

    try:
        lines = shlex.split(Paths.from_environment().launch_file.read_text())
    except FileNotFoundError:
        return None
    launch = dict(line.partition("=")[::2] for line in lines).get("SPARKD_LAUNCH_ID")
    try:
        state = run(["systemctl", "is-active", "sparkd-engine.service"], timeout_s=10).stdout.strip()
    except SparkdError:
        return launch
    return None if state in ("inactive", "failed") else launch
