"""Whether something grows: the slope within each life after its warm-up, and the first third beside the last. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from .gauges import Point

POINTS_MIN = 12  # of a life, after its warm-up; fewer say nothing of a slope
HOUR_S = 3600.0


class Verdict(StrEnum):
    FLAT = "flat"
    MEDIANS = "flat, by medians"  # it jumps too much for a slope; the first and the last third are alike
    FALLS = "falls"
    GROWS = "grows"
    UNCLEAR = "cannot tell"  # too few readings, or too uncertain to be told from the tolerance


@dataclass(frozen=True)
class Trend:
    """`per_hour` is one slope for all lives, each with a level of its own; `error` its standard error, twice."""

    points: int
    lives: int
    hours: float  # from the first reading to the last
    lowest: float
    highest: float
    first: float  # median of the first third of all readings
    last: float  # and of the last
    per_hour: float | None
    error: float | None


def trend(points: Sequence[Point], *, warm_up_s: float) -> Trend | None:
    """None where nothing is left after the warm-up of each life."""
    lives = [_warm(list(life), warm_up_s) for _, life in groupby(points, key=lambda point: point.life)]
    kept = [point for life in lives for point in life]
    if not kept:
        return None
    third = max(1, len(kept) // 3)
    values = [point.value for point in kept]
    per_hour, error = _slope([life for life in lives if len(life) >= POINTS_MIN])
    return Trend(
        points=len(kept),
        lives=sum(1 for life in lives if life),
        hours=(kept[-1].t_s - kept[0].t_s) / HOUR_S,
        lowest=min(values),
        highest=max(values),
        first=statistics.median(values[:third]),
        last=statistics.median(values[-third:]),
        per_hour=per_hour,
        error=error,
    )


def _warm(life: list[Point], warm_up_s: float) -> list[Point]:
    return [point for point in life if point.t_s - life[0].t_s >= warm_up_s]


def _slope(lives: Sequence[Sequence[Point]]) -> tuple[float | None, float | None]:
    """Least squares over all lives at once, each life's own mean taken off. Per hour, with twice its standard error.

    Readings that follow each other resemble each other, so the true error is somewhat larger.
    """
    deviations = []
    for life in lives:
        t_mean, v_mean = statistics.fmean(p.t_s for p in life), statistics.fmean(p.value for p in life)
        deviations += [(point.t_s - t_mean, point.value - v_mean) for point in life]
    spread = sum(t * t for t, _ in deviations)
    freedom = len(deviations) - len(lives) - 1
    if freedom < 1 or spread == 0:
        return None, None
    slope = sum(t * v for t, v in deviations) / spread
    noise = sum((v - slope * t) ** 2 for t, v in deviations) / freedom
    return slope * HOUR_S, 2 * math.sqrt(noise / spread) * HOUR_S


def judge(found: Trend | None, per_hour_max: float) -> Verdict:
    """By the slope and its uncertainty: flat where both together stay within the tolerance. A count that jumps with what the
    node does has no such slope in less than hours: then by the medians, which a leak moves."""
    if found is None or found.per_hour is None or found.error is None:
        return Verdict.UNCLEAR
    low, high = found.per_hour - found.error, found.per_hour + found.error
    if low > per_hour_max:
        return Verdict.GROWS
    if high < -per_hour_max:
        return Verdict.FALLS
    if high <= per_hour_max and low >= -per_hour_max:
        return Verdict.FLAT
    return Verdict.MEDIANS if abs(found.last - found.first) <= per_hour_max * found.hours else Verdict.UNCLEAR
