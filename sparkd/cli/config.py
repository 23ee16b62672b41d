"""`sparkd config check`: is the configuration usable, before anything is started with it? Needs no root, no daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparkd.cli import output
from sparkd.cli.options import config_option

if TYPE_CHECKING:
    from sparkd.model.cluster import Cluster


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@config_option
@output.json_option
def check(config_path: Path, as_json: bool) -> None:
    """Read sparkd.yaml, its recipe and all profiles, and say what they lead to.

    The first thing that is wrong is named with file, line and key (exit status 64).
    """
    from sparkd.config.load import load, plan_for

    configuration = load(config_path)
    plan = plan_for(configuration)
    cluster = configuration.settings.cluster
    here = _here(cluster)
    if as_json:
        output.say_json(
            {
                "path": str(configuration.path),
                "files": [str(file) for file in configuration.files],
                "fingerprint": configuration.fingerprint,
                "cluster": cluster.name,
                "nodes": [node.name for node in cluster.nodes],
                "this_node": here,
                "recipe": plan.recipe,
                "profile": plan.profile,
                "profiles": sorted(configuration.profiles),
                "plan": plan.digest,
            }
        )
        return
    nodes = ", ".join(f"{node.name} ({node.link_address})" for node in cluster.nodes)
    output.say(f"{configuration.path}: good, {len(configuration.files)} files read")
    output.say(f"cluster   {cluster.name}: {nodes}")
    output.say(f"here      {here or 'none of these nodes, by its addresses and host name'}")
    output.say(f"recipe    {plan.recipe}, image {plan.ranks[0].container.image}")
    output.say(f"profile   {plan.profile or 'none'} (known: {', '.join(sorted(configuration.profiles)) or 'none'})")
    output.say(f"plan      {plan.digest[:12]} (must be the same on every node)")


def _here(cluster: Cluster) -> str | None:
    """Which node this machine is; None is no fault: a configuration may be checked anywhere."""
    from sparkd.config.identity import identify_here
    from sparkd.model.errors import ConfigError

    try:
        return identify_here(cluster).name
    except ConfigError:
        return None
