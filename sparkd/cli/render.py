"""`sparkd render`: the exact script that a rank would run. Needs no root and no daemon."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sparkd.cli import output
from sparkd.cli.options import config_option, profile_option
from sparkd.model.errors import UsageError


@click.command()
@click.option("--rank", type=click.IntRange(min=0), required=True, help="0 is the head, every other a worker.")
@profile_option
@click.option("--raw", is_flag=True, help="With the values of variables that look like secrets.")
@config_option
@output.json_option
def render(rank: int, profile: str | None, raw: bool, config_path: Path, as_json: bool) -> None:
    """Print the launch script of a rank, byte for byte as it is staged into the container; secrets only with --raw."""
    from sparkd.config.load import load, plan_for
    from sparkd.model.redact import redact

    cluster_plan = plan_for(load(config_path), profile)
    if rank >= len(cluster_plan.ranks):
        hint = f"the configured cluster has ranks 0 to {len(cluster_plan.ranks) - 1}"
        raise UsageError(f"there is no rank {rank}", where="--rank", hint=hint)
    plan = cluster_plan.ranks[rank]
    if as_json:
        shown = plan.model_dump(mode="json")
        if not raw:
            environment = {
                name: redact(f"{name}={value}").partition("=")[2] for name, value in plan.environment.items()
            }
            argv = redact("\0".join(plan.argv)).split("\0")
            shown |= {"script": redact(plan.script), "environment": environment, "argv": argv}
        output.say_json({"digest": cluster_plan.digest, **shown})
    else:
        sys.stdout.write(plan.script if raw else redact(plan.script))
