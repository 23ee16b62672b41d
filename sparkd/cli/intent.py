"""`sparkd start`, `stop`, `restart`: what the operator wants of the whole cluster, on whichever node it is said."""

from __future__ import annotations

import click

from sparkd.cli import daemon, output
from sparkd.cli.options import profile_option


def _ask(verb: str, profile: str | None, as_json: bool) -> None:
    answer = daemon.ask(verb, profile=profile)
    if as_json:
        output.say_json(answer)
    else:
        output.say(str(answer["says"]))


@click.command()
@profile_option
@output.json_option
def start(profile: str | None, as_json: bool) -> None:
    """Let the cluster serve (again, after a stop).

    Says what was asked for and returns; `sparkd wait --ready` waits for the answer.
    """
    _ask("start", profile, as_json)


@click.command()
@output.json_option
def stop(as_json: bool) -> None:
    """End the engine on all nodes and keep it ended, over reboots too."""
    _ask("stop", None, as_json)


@click.command()
@profile_option
@output.json_option
def restart(profile: str | None, as_json: bool) -> None:
    """End the engine on all nodes and launch it anew.

    Takes a changed configuration, or another profile. Spends nothing of the retry budget.
    """
    _ask("restart", profile, as_json)
