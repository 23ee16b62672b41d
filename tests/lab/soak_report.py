"""The numbers of a soak as a table: for each quantity the first and the last third, the slope, and a verdict. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from . import flat, gauges
from .flat import Trend, Verdict
from .gauges import GAUGES, Gauge, Reading
from .places import NODES
from .soak import Soak

WARM_UP_S = 600.0  # of each life: imports, caches, and some launches, until the heap has found its size
SETTLED = 0.5  # of the soak: by then ten launches have left their logs and five their baselines, as many as are kept
HEADING = "## Soak"

Row = tuple[Gauge, dict[str, Trend | None]]


def rows(soak: Soak) -> list[Row]:
    return [(gauge, {node: trend(gauge, of(soak, node), soak.minutes) for node in NODES}) for gauge in GAUGES]


def of(soak: Soak, node: str) -> list[Reading]:
    return [reading for reading in soak.readings if reading["node"] == node]


def trend(gauge: Gauge, readings: Sequence[Reading], minutes: float) -> Trend | None:
    warm_up_s = WARM_UP_S if gauge.lives else SETTLED * minutes * 60
    return flat.trend(gauges.points(gauge, readings), warm_up_s=warm_up_s)


def verdict(row: Row) -> Verdict:
    """Of both nodes together: the worse one."""
    gauge, trends = row
    found = [flat.judge(trend, gauge.per_hour_max) for trend in trends.values()]
    return next(
        (one for one in (Verdict.GROWS, Verdict.UNCLEAR, Verdict.FALLS, Verdict.MEDIANS) if one in found), Verdict.FLAT
    )


def cell(trend: Trend | None) -> str:
    if trend is None:
        return "-"
    slope = "" if trend.per_hour is None else f"; {trend.per_hour:+.2f} ± {trend.error:.2f}"
    return f"{trend.first:.1f} → {trend.last:.1f} ({trend.lowest:.1f} to {trend.highest:.1f}){slope}"


def table(soak: Soak) -> list[str]:
    lines = [
        f"| what | {' | '.join(NODES)} | flat within, an hour | verdict |",
        "| --- " * (len(NODES) + 3) + "|",
    ]
    for row in rows(soak):
        gauge, trends = row
        what = f"{gauge.title}, {gauge.unit}" if gauge.unit else gauge.title
        shown = " | ".join(cell(trends[node]) for node in NODES)
        lines.append(f"| {what} | {shown} | ± {gauge.per_hour_max:g} | {verdict(row)} |")
    return lines


def bounded(soak: Soak) -> list[str]:
    """What grows by its nature, and where it ends."""
    lines = []
    for node in NODES:
        seen = of(soak, node)
        if len(seen) < 2:
            continue
        hours = (seen[-1]["t"] - seen[0]["t"]) / 3600
        events = (seen[-1]["events_bytes"] - seen[0]["events_bytes"]) / 1024
        journal, lines_said = (sum(reading[key] for reading in seen[1:]) for key in ("journal_bytes", "journal_lines"))
        lines.append(
            f"- {node}: events.jsonl {events / hours:+.0f} KiB an hour (turned over at 1 MB, one old file is kept: 2 MB at most);"
            f" journal {journal / 1024 / hours:.0f} KiB and {lines_said / hours:.0f} lines an hour."
        )
    return lines


def lived_through(soak: Soak) -> list[str]:
    """What happened to the pair meanwhile."""
    slowest = max(soak.blows, key=lambda blow: blow[2], default=None)
    came = f"{soak.answered} answers, {soak.failed} failures"
    polled = f"{soak.polled} answers, {soak.unpolled} times no daemon"
    if not soak.is_whole:
        return [f"{len(soak.blows)} faults, one each {soak.every_s:.0f} s. It was cut short: nothing else was counted."]
    told = [
        f"{len(soak.blows)} faults, one each {soak.every_s:.0f} s; after {len(soak.complaints)} the pair did not serve again.",
        f"Clients: {came}; dashboards: {polled}; doctors: {soak.doctors}.",
    ]
    if slowest is not None:
        told[0] += f" Slowest: {slowest[1]}, {slowest[2]:.0f} s to an answer."
    return told


def section(soak: Soak, machine: str) -> str:
    """For docs/bench.md."""
    return "\n".join(
        [
            HEADING,
            "",
            f"Written by `scripts/bench --soak {soak.minutes:g} --write`: {soak.minutes:g} minutes in the lab, {machine}.",
            "Read from outside every 10 s on both nodes. First → last third (medians), lowest and highest of all readings;",
            "the slope an hour by least squares with twice its standard error, within each life of the daemon (or boot) after",
            "10 minutes; what belongs to the node alone: over the second half. Flat: slope and error stay within the tolerance;",
            "by medians: it jumps too much for a slope, and the first and the last third differ by no more than the tolerance.",
            "",
            *table(soak),
            "",
            *bounded(soak),
            "",
            *lived_through(soak),
            "",
        ]
    )
