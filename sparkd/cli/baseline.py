"""`sparkd baseline --epoch N`: take this node's boundary and keep it. The daemon calls it when a launch has held.

A process of its own, so that what only this needs costs the daemon no memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparkd.cli import output
from sparkd.cli.options import config_option, node_option
from sparkd.model.errors import SparkdError

if TYPE_CHECKING:
    from sparkd.host.paths import Paths
    from sparkd.model.plan import ClusterPlan


@click.command(hidden=True)
@click.option("--epoch", type=click.IntRange(min=0), required=True, help="The epoch that has proven itself.")
@config_option
@node_option
@output.json_option
def baseline(epoch: int, config_path: Path, node: str | None, as_json: bool) -> None:
    """Write down how everything around the engine is now, as what `sparkd drift` compares with."""
    from sparkd.cli.here import facts_here
    from sparkd.doctor import baselines, boundary

    facts = facts_here(config_path, node)
    if facts.config_error is not None:
        raise facts.config_error
    # What has proven itself is the plan that was launched, whatever the files say since.
    facts.cluster_plan = _launched(facts.paths) or facts.cluster_plan
    taken = boundary.take(facts)
    try:
        name = baselines.write(facts.paths, taken, epoch)
    except OSError as error:
        where = str(baselines.directory(facts.paths))
        raise SparkdError(
            f"the baseline cannot be written: {error.strerror}", where=where, hint="df -h; as root?"
        ) from None
    if as_json:
        output.say_json({"baseline": name.name, "groups": len(taken.groups), "unseen": taken.unseen})
    else:
        unseen = f", without {', '.join(taken.unseen)}" if taken.unseen else ""
        output.say(f"{name.name}: {sum(map(len, taken.groups.values()))} facts in {len(taken.groups)} groups{unseen}")


def _launched(paths: Paths) -> ClusterPlan | None:
    """The plan that the last launch ran, as the daemon keeps it; None where it keeps none that can be read."""
    from pydantic import ValidationError

    from sparkd.host.files import whole
    from sparkd.host.paths import PLAN_MAX_BYTES
    from sparkd.model.plan import ClusterPlan

    try:
        return ClusterPlan.model_validate_json(whole(paths.plan, PLAN_MAX_BYTES))
    except (OSError, ValidationError):
        return None
