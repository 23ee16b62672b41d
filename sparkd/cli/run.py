"""`sparkd run`: the daemon itself, as sparkd.service starts it."""

from __future__ import annotations

from pathlib import Path

import click

from sparkd.cli.options import config_option, node_option


@click.command()
@config_option
@node_option
def run(config_path: Path, node: str | None) -> int:
    """Run the agent of this node (sparkd.service does)."""
    from sparkd.agent.main import run as run_agent

    return run_agent(config_path, node)
