"""The examination as a tired person reads it: the incident in the first line, then how we know, what to do, what changed.

Pure: an Examination becomes lines. What is good is told with `verbose` only; what could not be looked at is always counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sparkd.doctor.judge import Suspect, suspects
from sparkd.doctor.layout import Paint, View, cut, hanging, labelled, one_line, plain, plural, steps
from sparkd.model.diagnosis import Change, Diagnosis, Examination
from sparkd.model.finding import Finding, Verdict, Who, depth

EVIDENCE_MAX = 4
CHANGES_MAX = 5
OTHERS_MAX = 8
UNSEEN_MAX = 3
COLOURS = {Verdict.BAD: "red", Verdict.WARNING: "yellow", Verdict.GOOD: "green", Verdict.UNKNOWN: "dim"}


@dataclass(frozen=True)
class Told:
    """One thing that is wrong, and the nodes on which it is."""

    suspect: Suspect
    nodes: tuple[str, ...]


def lines(
    examination: Examination, *, width: int = 100, verbose: bool = False, paint: Paint = plain, stands: str = ""
) -> list[str]:
    """The whole screen. `stands`: how the cluster stands in its daemon's words, empty where none answered."""
    view = View(width, verbose, paint, stands)
    wrong = _once(suspects(examination.nodes, examination.pair))
    blocks = [
        [*_headline(examination, wrong, view)],
        [*_changed(examination, view)] if wrong or verbose else [],
        [*_others(examination, wrong[1:], view)],
        [*_everything(examination, view)] if verbose else [],
        [*_unsure(examination, view)],
    ]
    out: list[str] = []
    for block in filter(None, blocks):
        out += ["", *block] if out else block
    return out


# --- the first thing -------------------------------------------------------------------------------


def _headline(examination: Examination, wrong: Sequence[Told], view: View) -> Iterator[str]:
    if not wrong:
        says, colour = _nothing_wrong(examination)
        fits = len(says) + len(view.stands) + 2 <= 1.3 * view.width  # a little over is better than another line
        yield view.paint(f"{says}, {view.stands}" if fits and view.stands else says, colour)
        yield from labelled("state", view.stands, view) if view.stands and not fits else ()
        yield from _absent(examination, view)
        return
    first = wrong[0].suspect
    yield view.paint(f"{_where(wrong[0], examination)}: {first.id}: {one_line(first.says)}", COLOURS[first.verdict])
    yield from labelled("", _place(first), view) if first.where else ()
    shown = first.evidence if view.verbose else first.evidence[:EVIDENCE_MAX]
    for line in (line for line in shown if line.strip() and line.strip() not in first.says):
        yield from labelled("seen", cut(line, 3 * view.width, view), view)
    yield from steps("do", first.remedy, view)
    doubt = "" if first.verdict is Verdict.BAD or first.rank else "; a warning: it works now, and may not for long"
    yield from labelled("who", f"{_who(first)}; more: sparkd explain {first.id}{doubt}", view)
    if view.stands:
        yield from labelled("state", view.stands, view)
    yield from _absent(examination, view)


def _who(suspect: Suspect) -> str:
    """Sparkd mends what a check of its own found when it is asked to; what a log told of, it gets over by itself."""
    match suspect.who:
        case Who.SPARKD if suspect.where or suspect.remedy.startswith("wait"):
            return "sparkd, by itself"
        case Who.SPARKD:
            return "sparkd: sparkd doctor --fix"
        case Who.OPERATOR:
            return "an operator"
    return suspect.who.value


def _nothing_wrong(examination: Examination) -> tuple[str, str]:
    nodes = _names(each.node for each in examination.nodes)
    counts = _counts(examination)
    good, unknown = counts[Verdict.GOOD], counts[Verdict.UNKNOWN]
    where = f" on {nodes}" if nodes else ""
    looked = f"{good} {plural('check', good)} good{where}" + (f", {unknown} could not tell" if unknown else "")
    if examination.verdict is Verdict.UNKNOWN:
        away = f"{_names(examination.absent)} did not answer; " if examination.absent else ""
        return f"cannot tell: {away}nothing wrong was seen, {looked}", "yellow"
    return f"nothing wrong: {looked}", "green"


def _absent(examination: Examination, view: View) -> Iterator[str]:
    for node, why in examination.absent.items():
        yield from labelled("", view.paint(f"{node} was not examined: {why}", "yellow"), view)


def _place(suspect: Suspect) -> str:
    times = f", {suspect.count} times" if suspect.count > 1 else ""
    at = f", {suspect.at}" if suspect.at else ""
    return f"in {suspect.where}{at}{times}:"


# --- what changed ----------------------------------------------------------------------------------


def _changed(examination: Examination, view: View) -> Iterator[str]:
    changes = sorted(
        (change for each in examination.nodes for change in each.changes), key=lambda change: -change.suspicion
    )
    baselines = {each.baseline for each in examination.nodes if each.baseline is not None}
    if not baselines:
        return
    newest = max(baselines, key=lambda name: (name.epoch, name.at))
    since = f"since it last worked (epoch {newest.epoch}, {newest.at[:16].replace('T', ' ')})"
    if not changes:
        yield f"nothing around the engine changed {since}"
        return
    yield view.paint(f"changed {since}", "bold")
    told = _same_change(changes, len(examination.nodes))
    shown = told if view.verbose else told[:CHANGES_MAX]
    for node, change in shown:
        yield from hanging(f"  {node:<{_node_width(examination)}}  ", _change(change), view, lines_max=2)
    if len(told) > len(shown):
        yield f"  and {len(told) - len(shown)} more: sparkd drift"


def _same_change(changes: Iterable[Change], nodes: int) -> list[tuple[str, Change]]:
    """The same change of both nodes is one."""
    found: dict[tuple[str, ...], list[Change]] = {}
    for change in changes:
        found.setdefault((change.group, change.name, str(change.before), str(change.after)), []).append(change)
    return [(_together([each.node for each in same], nodes), same[0]) for same in found.values()]


def _change(change: Change) -> str:
    if change.says:
        return f"{change.group}: {change.says}"
    match change.before, change.after:
        case None, after:
            what = f"new: {after}"
        case before, None:
            what = f"gone, was {before}"
        case before, after:
            what = f"{before} -> {after}"
    return f"{change.group}: {change.name}: {what}"


# --- what else is wrong ------------------------------------------------------------------------------


def _others(examination: Examination, others: Sequence[Told], view: View) -> Iterator[str]:
    """By layer, the worst first: bad layers before those with warnings only. What merely follows is a line."""
    roots = [told for told in others if told.suspect.rank == 0]
    follows = [told for told in others if told.suspect.rank]
    shown = roots if view.verbose else roots[:OTHERS_MAX]
    if shown:
        yield view.paint("also wrong", "bold")
    for layer, group in groupby(shown, key=lambda told: told.suspect.layer):
        yield f"  {view.paint(layer, 'dim')}"
        same = list(group)
        for told, following in zip(same, [*same[1:], None], strict=True):
            yield from _other(told, examination, view, is_last=following is None or not _same_cure(told, following))
    if len(roots) > len(shown):
        yield f"  and {len(roots) - len(shown)} more: sparkd doctor -v"
    if view.verbose:
        for told in follows:
            yield from _other(told, examination, view)
    elif follows:
        listed = ", ".join(f"{told.suspect.id} ({_where(told, examination)})" for told in follows)
        yield from hanging("symptoms: ", listed, view)
    hidden = {(id, cause) for each in examination.nodes for id, cause in each.hidden.items()}
    if hidden:
        causes = sorted({cause for _, cause in hidden})
        explain = "explains" if len(causes) == 1 else "explain"
        listed = f"{len(hidden)} {plural('check', len(hidden))} that {', '.join(causes)} {explain}"
        yield from hanging("not told: ", listed, view)


def _same_cure(one: Told, other: Told) -> bool:
    return (one.suspect.id, one.suspect.remedy) == (other.suspect.id, other.suspect.remedy)


def _other(told: Told, examination: Examination, view: View, *, is_last: bool = True) -> Iterator[str]:
    suspect = told.suspect
    width = _node_width(examination)
    mark = "" if suspect.verdict is Verdict.BAD else " (warning)"
    front = f"    {_where(told, examination):<{width}}  "
    text = f"{view.paint(suspect.id, COLOURS[suspect.verdict])}{mark}: {one_line(suspect.says)}"
    yield from hanging(front, text, view, lines_max=2)
    if view.verbose:
        for line in (_place(suspect) if suspect.where else "", *suspect.evidence):
            if line:
                yield from hanging(" " * len(front), line, view)
    if is_last:
        yield from steps("do", suspect.remedy, view, indent=len(front), lines_max=1)


# --- everything, for --verbose -----------------------------------------------------------------------


def _everything(examination: Examination, view: View) -> Iterator[str]:
    """Every answer of every node, both side by side, lowest layer first; and what the logs say of earlier times."""
    answers: dict[tuple[str, str, Verdict, str], list[str]] = {}
    blind: dict[tuple[str, str], list[str]] = {}
    for each in examination.nodes:
        for finding in each.findings:
            if finding.verdict is Verdict.UNKNOWN:
                blind.setdefault((each.node, finding.says), []).append(finding.id)
            else:
                answers.setdefault((finding.layer, finding.id, finding.verdict, finding.says), []).append(each.node)
    yield view.paint("every answer", "bold")
    ordered = sorted(answers, key=lambda key: (depth(key[0]), key[1]))
    width = _node_width(examination)
    for layer, keys in groupby(ordered, key=lambda key: key[0]):
        yield f"  {view.paint(layer, 'dim')}"
        for key in keys:
            _, id, verdict, says = key
            node = _together(answers[key], len(examination.nodes))
            front = f"    {view.paint(f'{verdict.value:<7}', COLOURS[verdict])}  {node:<{width}}  "
            yield from hanging(front, f"{id}: {says}", view)
    if blind:
        yield f"  {view.paint('could not tell', 'dim')}"
    for (node, why), ids in blind.items():  # what one missing thing hid from many checks is told once
        yield from hanging(f"    {node:<{width}}  ", f"{', '.join(dict.fromkeys(ids))}: {why}", view)
    past = [(each.node, incident) for each in examination.nodes for incident in each.incidents if not incident.current]
    if past:
        yield ""
        yield view.paint("history: from before the engine last proved itself, or of an earlier launch or boot", "bold")
    for node, incident in past:
        text = f"{incident.id}: {incident.says} [{', '.join(filter(None, (incident.where, incident.at)))}]"
        yield from hanging(f"    {node:<{width}}  ", text, view)


# --- what we do not know -----------------------------------------------------------------------------


def _unsure(examination: Examination, view: View) -> Iterator[str]:
    if not view.verbose:
        counted = [f"{count} on {each.node}" for each in examination.nodes if (count := _unknowns(each))]
        if counted:
            told = f"checks without an answer: {', '.join(counted)} (-v lists them)"
            yield from hanging("could not tell: ", told, view)
    unseen = [(each.node, why) for each in examination.nodes for why in _reasons(each)]
    shown = unseen if view.verbose else unseen[:UNSEEN_MAX]
    for node, why in shown:
        yield from hanging("not seen: ", f"{node}: {why}", view, lines_max=2)
    if len(unseen) > len(shown):
        yield f"not seen: and {len(unseen) - len(shown)} more (-v lists them)"
    past = sum(1 for each in examination.nodes for incident in each.incidents if not incident.current)
    if past and not view.verbose:
        yield f"history: {past} {plural('incident', past)} in older logs, explaining nothing now (-v lists them)"


def _reasons(diagnosis: Diagnosis) -> list[str]:
    """What could not be seen and why. To somebody who is not root it is one reason, not one for each file."""
    if not any(why.startswith("not root") for why in diagnosis.unseen):
        return list(diagnosis.unseen)
    kinds = ("ermission denied", "not permitted", "by this user")
    return [why for why in diagnosis.unseen if not any(kind in why for kind in kinds)]


def _unknowns(diagnosis: Diagnosis) -> int:
    return len({finding.id for finding in diagnosis.findings if finding.verdict is Verdict.UNKNOWN})


def _counts(examination: Examination) -> dict[Verdict, int]:
    """How many checks on any node have which worst answer."""
    findings: list[Finding] = [finding for each in examination.nodes for finding in each.findings]
    findings += examination.pair
    by_id: dict[str, set[Verdict]] = {}
    for finding in findings:
        by_id.setdefault(finding.id, set()).add(finding.verdict)
    order = (Verdict.BAD, Verdict.WARNING, Verdict.UNKNOWN, Verdict.GOOD)
    counts = dict.fromkeys(order, 0)
    for verdicts in by_id.values():
        counts[next(verdict for verdict in order if verdict in verdicts)] += 1
    return counts


# --- nodes -----------------------------------------------------------------------------------------


def _once(wrong: Iterable[Suspect]) -> list[Told]:
    """The same on several nodes is told once, at the place of the first."""
    found: dict[tuple[str, ...], list[Suspect]] = {}
    for suspect in wrong:
        says = suspect.says.replace(suspect.node, "\0") if suspect.node else suspect.says
        found.setdefault((suspect.id, suspect.verdict, says, suspect.remedy), []).append(suspect)
    return [
        Told(
            same[0] if len(same) == 1 else replace(same[0], where=same[0].where and f"{same[0].node}:{same[0].where}"),
            tuple(dict.fromkeys(each.node for each in same)),
        )
        for same in found.values()
    ]


def _where(told: Told, examination: Examination) -> str:
    return _together(told.nodes, len(examination.nodes)) or "both nodes together"


def _together(nodes: Sequence[str], of: int) -> str:
    names = list(dict.fromkeys(nodes))
    if len(names) > 1 and len(names) == of:
        return "both nodes" if of == 2 else f"all {of} nodes"
    return ", ".join(names)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:-1]) + (" and " if listed[:-1] else "") + "".join(listed[-1:])


def _node_width(examination: Examination) -> int:
    names = [len(each.node) for each in examination.nodes]
    return max([*names, len("both nodes") if len(names) > 1 else 0])
