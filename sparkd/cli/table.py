"""The status as a person reads it: plain text, from the daemon's answer alone. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Paint = Callable[[str, str], str]
Answer = dict[str, Any]  # model.status.Status, as JSON

PHASE_COLOURS = {"serving": "green", "blocked": "red", "backoff": "yellow", "stopping": "yellow"}
STARTING = ("launching", "loading", "proving")  # in other phases what is known of progress is of an earlier start
LABEL_WIDTH = 10
GAP = "  "


def plain(text: str, colour: str) -> str:
    return text


def status_text(answer: Answer, paint: Paint = plain) -> str:
    """Header, reason, findings with their remedies, and a row for each node."""
    lines = [
        _line("cluster", _cluster(answer)),
        _line("state", _state(answer, paint)),
        _line("reason", answer["reason"]),
        _line(
            "endpoint", answer["endpoint"] if answer["serving"] else f"{answer['endpoint']} (no proof that it answers)"
        ),
    ]
    for label, colour, finding in _findings(answer):
        lines.append(_line(label, paint(f"{finding['says']} [{finding['id']}]", colour)))
        lines += [_line("", evidence) for evidence in finding.get("evidence", ()) if evidence not in finding["says"]]
        if finding.get("remedy"):
            lines.append(_line("remedy", finding["remedy"]))
    if answer.get("pending"):
        lines.append(_line("pending", paint(answer["pending"], "yellow")))
    return "\n".join([*lines, "", *_nodes(answer, paint)])


def status_line(answer: Answer) -> str:
    """One line that changes when something happened, and not because a second went by."""
    nodes = ", ".join(f"{node['node']} {node['phase'] or 'unknown'}{_step(node)}" for node in answer["nodes"])
    finding = next((f": {finding['says']}" for _, _, finding in _findings(answer)), "")
    return f"epoch {answer['epoch']}: {nodes}{finding}"


def duration(seconds: float) -> str:
    """4 s, 3 min 20 s, 2 h 5 min, 3 d 4 h: two units are enough."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


# --- header ----------------------------------------------------------------------------------------


def _line(label: str, text: str) -> str:
    return f"{label:<{LABEL_WIDTH}}{text}".rstrip()


def _cluster(answer: Answer) -> str:
    profile = f", profile {answer['profile']}" if answer.get("profile") else ""
    return f"{answer['cluster']}, recipe {answer['recipe']}{profile}"


def _state(answer: Answer, paint: Paint) -> str:
    phase = answer["phase"]
    since = f"for {duration(answer['since_s'])}"
    if answer["serving"]:
        age_s = answer.get("proof_age_s")
        proof = "" if age_s is None else f", last proof {duration(age_s)} ago"
        return f"{paint('serving', 'green')} {since}{proof}, epoch {answer['epoch']}"
    if not answer["run"]:
        return f"{paint('stopped', 'yellow')} by an operator ({phase} {since}); `sparkd start` lets it serve"
    more = []
    if phase == "backoff" and answer.get("retry_in_s") is not None:
        more.append(f"next attempt in {duration(answer['retry_in_s'])}")
    if answer.get("restarts_left") is not None and phase in ("backoff", "blocked"):
        more.append(f"{answer['restarts_left']} restarts left")
    tail = "".join(f", {text}" for text in more)
    return f"{paint(phase, PHASE_COLOURS.get(phase, 'bold'))} {since}, epoch {answer['epoch']}{tail}"


def blocked(answer: Answer) -> dict[str, Any] | None:
    """The finding that a person must act on: this node's, else the first of the other nodes'."""
    return next((finding for label, _, finding in _findings(answer) if label == "blocked"), None)


def _findings(answer: Answer) -> list[tuple[str, str, dict[str, Any]]]:
    """(label, colour, finding) of this node and then of the others, each only once."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    told: list[str] = []
    for holder in (answer, *answer["nodes"]):
        ours = holder["node"] == answer["node"]
        for label, colour in (("blocked", "red"), ("waiting", "yellow")):
            finding = holder.get(label)
            if finding is None and label == "blocked" and holder["phase"] == "blocked" and not ours:
                finding = _blocked_there(holder)
            if finding and finding["says"] not in told:
                told.append(finding["says"])
                whose = "" if ours else f"{holder['node']}: "
                found.append((label, colour, {**finding, "says": whose + finding["says"]}))
    return found


def _blocked_there(node: dict[str, Any]) -> dict[str, Any]:
    """A head whose sparkd is older tells its phase and reason, not its findings."""
    says = node["reason"].removeprefix("blocked: ") or "blocked"
    return {"id": "peer.blocked", "says": says, "remedy": f"see `sparkd status` on {node['node']}"}


# --- nodes -----------------------------------------------------------------------------------------


def _nodes(answer: Answer, paint: Paint) -> list[str]:
    header = ("NODE", "ROLE", "PHASE", "PROGRESS", "ETA", "EPOCH", "ENGINE", "HEARD")
    rows = [_row(node) for node in answer["nodes"]]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [paint(_columns(header, widths), "dim")]
    for node, row in zip(answer["nodes"], rows, strict=True):
        # painted after it was measured: colours have no width
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[2] = paint(cells[2], PHASE_COLOURS.get(node["phase"] or "", ""))
        lines.append(GAP.join(cells).rstrip())
    return lines


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    progress = (node.get("progress") or {}) if node["phase"] in STARTING else {}
    eta_s = progress.get("eta_s")
    return (
        node["node"],
        "head" if node["rank"] == 0 else f"worker {node['rank']}",
        node["phase"] or "unknown",
        _progress(progress) or "-",
        duration(eta_s) if eta_s is not None else "-",
        str(node["epoch"]) if node.get("epoch") is not None else "-",
        {True: "alive", False: "none", None: "unknown"}[node.get("engine_alive")],
        _heard(node),
    )


def _progress(progress: dict[str, Any]) -> str:
    fraction = progress.get("fraction")
    share = f"{fraction * 100:.0f} %" if fraction is not None else ""
    return " ".join(filter(None, (share, progress.get("says"))))


def _step(node: dict[str, Any]) -> str:
    says = (node.get("progress") or {}).get("says")
    return f" ({says})" if says and node["phase"] == "loading" else ""


def _heard(node: dict[str, Any]) -> str:
    if node["reachable"] == "self":
        return "itself"
    ago_s = node.get("heard_s_ago")
    if ago_s is None:
        return f"never ({node['reachable']})"
    return f"{duration(ago_s)} ago" + ("" if node["reachable"] == "yes" else f" ({node['reachable']})")
