"""`sparkd build`: what is in the image, and whether a fix is in it already. Ask before proposing a rebuild."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparkd.cli import output
from sparkd.cli.options import config_option, node_option
from sparkd.model.errors import EXIT_FAILED, EXIT_GOOD, EXIT_UNKNOWN, EXIT_WARNINGS, SparkdError

if TYPE_CHECKING:
    from sparkd.doctor.facts import Facts
    from sparkd.engine.build import Answer, Build

MARKER_MAX_S = 30.0  # a search through some thousand files
LABEL_WIDTH = 16


@click.group(invoke_without_command=True)
@config_option
@node_option
@output.json_option
@click.pass_context
def build(context: click.Context, config_path: Path, node: str | None, as_json: bool) -> int:
    """Show what the engine's image was built from, on this node.

    Read from the image's build metadata and labels and from the vLLM that is installed in it.

    \b
      sparkd build                      commits, pull requests, versions, date
      sparkd build has vllm#41834       do we already have this fix?

    Exit status: 0 it is known, 2 there is no such image, 3 cannot tell.
    """
    context.obj = (config_path, node, as_json)
    if context.invoked_subcommand is None:
        return _show(config_path, node, as_json)
    return EXIT_GOOD


@build.command()
@output.json_option
@click.pass_context
def show(context: click.Context, as_json: bool) -> int:
    """Print what is known (the same as `sparkd build` alone)."""
    config_path, node, above = context.obj
    return _show(config_path, node, as_json or above)


@build.command()
@click.argument("fix", metavar="COMMIT|PULL-REQUEST")
@click.option("--marker", metavar="TEXT", help="Search the installed vLLM for a text that only the fix contains.")
@output.json_option
@click.pass_context
def has(context: click.Context, fix: str, marker: str | None, as_json: bool) -> int:
    """Say whether the image has a fix. COMMIT is 7 to 40 digits, PULL-REQUEST is #41834, vllm#41834 or its address.

    Exit status: 0 the image has it, 1 it has not, 3 cannot tell. That a commit is *not* in it cannot be seen from its
    metadata (ancestry is not recorded, and branches are rewritten): `--marker` answers from the files themselves.
    """
    from sparkd.cli.here import configured_here
    from sparkd.engine import build as builds

    config_path, node, above = context.obj
    question = builds.asked(fix)
    facts = configured_here(config_path, node)
    known = _build(facts)
    answer = builds.has(known, question)
    if marker and answer.has is not builds.Has.YES:
        answer = _marked(facts, known, marker, answer)
    _say(fix, answer, as_json or above)
    return {builds.Has.YES: EXIT_GOOD, builds.Has.NO: EXIT_WARNINGS}.get(answer.has, EXIT_UNKNOWN)


def _show(config_path: Path, node: str | None, as_json: bool) -> int:
    from sparkd.cli.here import configured_here
    from sparkd.engine import build as builds

    known = _build(configured_here(config_path, node))
    if as_json:
        output.say_json(_as_json(known))
    else:
        for what, value in builds.lines(known):
            output.say(f"{what + ' ':<{LABEL_WIDTH}}{value}")
    for why in known.unseen:
        output.note(why)
    if not known.image_id and not known.knows_anything:
        return EXIT_FAILED
    return EXIT_GOOD if known.knows_anything else EXIT_UNKNOWN


def _build(facts: Facts) -> Build:
    from sparkd.doctor.checks.image import build as read

    return read(facts)


def _marked(facts: Facts, known: Build, marker: str, before: Answer) -> Answer:
    from sparkd.engine import build as builds

    name = facts.plan.container.name
    if not known.vllm_path:
        says = "the installed vLLM cannot be searched: " + ("; ".join(known.unseen) or "it was not found")
        return builds.Answer(builds.Has.UNKNOWN, says, before.evidence)
    try:
        return builds.marked(facts.docker, name, known.vllm_path, marker, timeout_s=MARKER_MAX_S)
    except SparkdError as error:
        return builds.Answer(builds.Has.UNKNOWN, str(error), before.evidence)


def _say(fix: str, answer: Answer, as_json: bool) -> None:
    if as_json:
        output.say_json({"asked": fix, "has": str(answer.has), "says": answer.says, "evidence": list(answer.evidence)})
        return
    output.say(f"{answer.has}: {answer.says}")
    for line in answer.evidence:
        output.say(f"  {line}")


def _as_json(known: Build) -> dict[str, Any]:
    return {
        "image": known.image,
        "image_id": known.image_id,
        "built_at": known.built_at,
        "image_created_at": known.created_at,
        "vllm_version": known.vllm_version,
        "commits": known.commits(),
        "pull_requests": [
            {"project": project, "number": int(number), "where": where}
            for (project, number), where in known.pull_requests().items()
        ],
        "packages": dict(known.packages),
        "metadata": dict(known.metadata),
        "labels": dict(known.labels),
        "unseen": list(known.unseen),
    }
