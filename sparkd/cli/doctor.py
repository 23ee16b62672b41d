"""`sparkd doctor`: what is wrong, how we know, what changed since it last worked, who must act, the exact command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparkd.cli import others, output
from sparkd.cli.apart import apart
from sparkd.cli.asking import IN_ALL_S, LOCAL_MAX_S, STARTED, Asking
from sparkd.cli.options import config_option, node_option
from sparkd.model.errors import EXIT_FAILED, EXIT_GOOD, EXIT_UNKNOWN, EXIT_WARNINGS, UsageError

if TYPE_CHECKING:
    from sparkd.doctor.facts import Facts
    from sparkd.model.diagnosis import Examination

EXIT_CODES = {"good": EXIT_GOOD, "warning": EXIT_WARNINGS, "bad": EXIT_FAILED, "unknown": EXIT_UNKNOWN}
SOURCES = ("vllm-log", "kernel-log", "journal", "docker", "http")


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Also show what is good, what could not be told, and history.")
@click.option("--list", "listing", is_flag=True, help="List the checks, and ask nothing.")
@click.option("--only", multiple=True, metavar="ID", help="Ask only this check or layer, or `logs`, `drift`.")
@click.option("--skip", multiple=True, metavar="ID", help="Leave this check or layer out.")
@click.option("--peer/--no-peer", default=True, help="Ask the other nodes too, through the daemons.")
@click.option(
    "--log", "logs", multiple=True, metavar="FILE", help="Only classify this log file (- for stdin; .gz too)."
)
@click.option(
    "--source", type=click.Choice(SOURCES), metavar="KIND", help=f"The kind of log, else guessed: {', '.join(SOURCES)}."
)
@click.option("--thorough", is_flag=True, help="Read all logs to their beginning, however long it takes.")
@click.option(
    "--fix", is_flag=True, help="Then repair what is safe and proven to be sparkd's own; each is shown first."
)
@click.option("--yes", is_flag=True, help="With --fix: ask nothing.")
@config_option
@node_option
@output.json_option
def doctor(
    verbose: bool,
    listing: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    peer: bool,
    logs: tuple[str, ...],
    source: str | None,
    thorough: bool,
    fix: bool,
    yes: bool,
    config_path: Path,
    node: str | None,
    as_json: bool,
) -> int:
    """Name the incident: what is wrong, the evidence, what changed since it last worked, and the command to give.

    Asks this node and, through the daemons, the others. Works without a daemon, Docker, root, network or configuration,
    and says what it could not see.

    \b
      sparkd doctor --fix               then repair what is safe and sparkd's own
      sparkd doctor --log crash.log     name the incident in a log from anywhere
      sparkd doctor --only link         ask one layer, or one check, alone

    Exit status: 0 nothing wrong, 1 warnings, 2 something is wrong, 3 cannot tell.
    """
    if yes and not fix:
        raise UsageError("--yes answers what --fix asks", where="--yes", hint="sparkd doctor --fix --yes")
    if source and not logs:
        raise UsageError(
            "--source says what --log gives", where="--source", hint="sparkd doctor --log FILE --source ..."
        )
    if listing:
        return _list(as_json)
    if logs:
        from sparkd.cli.doctor_log import classify_files

        return classify_files(logs, source, verbose=verbose, as_json=as_json)
    if only or skip:
        _known(only, skip)
    examine = Asking(config_path, node, peer, only, skip, thorough)
    if fix:
        return _fix(examine, yes=yes, verbose=verbose, as_json=as_json)
    takes_longer = (thorough or only) and examine.limit_s() > LOCAL_MAX_S
    until = STARTED + IN_ALL_S + 0.5 if not takes_longer else STARTED + examine.limit_s() + others.MAX_S
    return apart(examine, lambda found: _tell(*found, verbose=verbose, as_json=as_json), until=until)


# --- asking ----------------------------------------------------------------------------------------


def examine_here(config_path: Path, node: str | None, *, peer: bool = True) -> tuple[Facts, Examination]:
    """This node, and the others where `peer`: for `sparkd report`."""
    return Asking(config_path, node, peer)()


def _known(only: Sequence[str], skip: Sequence[str]) -> None:
    """UsageError, with what is meant perhaps, where a name is no check, layer or part."""
    from sparkd.cli.explain import did_you_mean
    from sparkd.doctor import examine
    from sparkd.doctor.declared import every_check

    checks = every_check()
    names = {each.id for each in checks} | {each.layer.value for each in checks}
    names |= {each.id.partition(".")[0] for each in checks} | {examine.LOGS, examine.DRIFT}
    for option, given in (("--only", only), ("--skip", skip)):
        for name in given:
            if name not in names:
                hint = f"{did_you_mean(name, names)}sparkd doctor --list shows all"
                raise UsageError(f"there is no check or layer {name!r}", where=option, hint=hint)


# --- telling ---------------------------------------------------------------------------------------


def _tell(facts: Facts, examination: Examination, *, verbose: bool, as_json: bool) -> int:
    if as_json:
        print(examination.model_dump_json(indent=2))
    else:
        for line in screen_lines(facts, examination, verbose=verbose):
            print(line)
    return EXIT_CODES[examination.verdict.value]


def screen_lines(facts: Facts, examination: Examination, *, verbose: bool) -> list[str]:
    """As wide as the terminal is, 100 columns at most: longer lines are hard to read."""
    from sparkd.doctor import screen

    width = min(100, shutil.get_terminal_size((100, 40)).columns)
    paint = output.painter(output.colours_wanted())
    return screen.lines(examination, width=width, verbose=verbose, paint=paint, stands=stands(facts.status))


def stands(status: Any) -> str:
    """How the cluster stands, in the daemon's words."""
    if status is None:
        return ""
    from sparkd.cli.table import duration

    since = duration(float(status.get("since_s") or 0.0))
    if not status.get("serving"):
        reason = str(status.get("reason") or "")
        epoch = "" if "epoch" in reason else f", epoch {status.get('epoch')}"
        return f"{reason or status.get('phase')}, for {since}{epoch}"
    age_s = status.get("proof_age_s")
    proof = "" if age_s is None else f", last proof {duration(age_s)} ago"
    return f"serving for {since}, epoch {status.get('epoch')}{proof}"


def _list(as_json: bool) -> int:
    from sparkd.doctor.declared import every_check

    checks = every_check()
    if as_json:
        rows = [
            {"id": each.id, "layer": each.layer.value, "question": each.question, "who": each.who.value,
             "gate": each.gate.value if each.gate else None, "pair": each.compare is not None, "slow": each.slow}
            for each in checks
        ]  # fmt: skip
        output.say_json(rows)
        return EXIT_GOOD
    paint = output.painter(output.colours_wanted())
    width = max(len(each.id) for each in checks)
    layer = ""
    output.say(f"  {'CHECK':<{width}}  {'WHO':<8}  {'GATE':<9}  QUESTION")
    for each in checks:
        if each.layer.value != layer:
            layer = each.layer.value
            output.say(paint(layer, "bold"))
        who = each.who.value.split()[0]
        gate = each.gate.value if each.gate else "-"
        notes = "compares nodes" if each.compare else "only when named" if each.slow else ""
        question = each.question + (paint(f" ({notes})", "dim") if notes else "")
        output.say(f"  {each.id:<{width}}  {who:<8}  {gate:<9}  {question}")
    output.say(f"{len(checks)} checks; `sparkd explain ID` tells more of each")
    return EXIT_GOOD


# --- repairing ---------------------------------------------------------------------------------------


def _fix(examine: Asking, *, yes: bool, verbose: bool, as_json: bool) -> int:
    """First what is wrong, then each repair, then what is left."""
    from sparkd.doctor import fixes

    facts, examination = examine()
    said = sys.stderr if as_json else sys.stdout

    def say(line: str) -> None:
        print(line, file=said, flush=True)

    if not as_json:
        _tell(facts, examination, verbose=verbose, as_json=False)
        say("")
    mine = next((each.findings for each in examination.nodes if each.node == examination.node), ())
    offered = fixes.offer(mine, facts, _tidy(facts))
    if not offered:
        say("nothing of this can be repaired by sparkd on this node")
        if as_json:
            _tell(facts, examination, verbose=verbose, as_json=True)
        return EXIT_CODES[examination.verdict.value]
    all_done = fixes.carry_out(offered, say, lambda _: yes or _agreed())
    facts, after = examine()
    say("")
    _tell(facts, after, verbose=verbose, as_json=as_json)
    return EXIT_CODES[after.verdict.value] if all_done else EXIT_FAILED


def _agreed() -> bool:
    if not sys.stdin.isatty():
        output.note("not done: nobody can be asked here; --yes agrees to all of it")
        return False
    return click.confirm("    do it?", default=False, err=True)


def _tidy(facts: Facts) -> Callable[[Any], list[str]]:
    """Through the daemon, which knows what is meant to live; by its own code where there is none."""
    from sparkd.cli import daemon
    from sparkd.cli.clean import CLEAN_MAX_S
    from sparkd.doctor import fixes

    if facts.status is None:
        return fixes.without_daemon(facts)
    return lambda only: [str(line) for line in daemon.ask("clean", timeout_s=CLEAN_MAX_S, only=list(only))["lines"]]
