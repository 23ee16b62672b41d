"""Whether something grows is judged by a slope that is known well enough, within each life of what is measured."""

from __future__ import annotations

import random

from tests.lab import gauges
from tests.lab.flat import Verdict, judge, trend
from tests.lab.gauges import GAUGES, Point


def life(
    name: str, begin_s: float, minutes: float, *, level: float, per_hour: float = 0.0, noise: float = 0.0
) -> list[Point]:
    chance = random.Random(f"{name}{begin_s}")
    times = [begin_s + 10 * n for n in range(int(minutes * 6))]
    return [Point(t, name, level + per_hour * (t - begin_s) / 3600 + chance.gauss(0, noise)) for t in times]


def test_noise_is_flat_and_a_leak_is_found() -> None:
    flat = trend(life("a", 0, 60, level=60, noise=0.5), warm_up_s=180)
    assert judge(flat, 2.0) is Verdict.FLAT
    leak = trend(life("a", 0, 60, level=60, per_hour=5, noise=0.5), warm_up_s=180)
    assert leak is not None and leak.per_hour is not None and 4 < leak.per_hour < 6
    assert judge(leak, 2.0) is Verdict.GROWS
    assert judge(trend(life("a", 0, 60, level=60, per_hour=-5, noise=0.5), warm_up_s=180), 2.0) is Verdict.FALLS


def test_a_leak_is_found_over_several_lives_that_each_begin_at_another_level() -> None:
    points = [
        *life("a", 0, 20, level=60, per_hour=8, noise=0.3),
        *life("b", 1200, 20, level=50, per_hour=8, noise=0.3),
        *life("c", 2400, 20, level=55, per_hour=8, noise=0.3),
    ]
    found = trend(points, warm_up_s=180)
    assert found is not None and found.lives == 3
    assert judge(found, 2.0) is Verdict.GROWS


def test_a_restart_is_not_taken_for_growth() -> None:
    points = [*life("a", 0, 30, level=50, noise=0.3), *life("b", 1800, 30, level=60, noise=0.3)]
    assert judge(trend(points, warm_up_s=180), 2.0) is Verdict.FLAT


def test_the_warm_up_is_left_out_and_too_little_says_nothing() -> None:
    rising = [Point(10.0 * n, "a", min(60.0, 40.0 + n)) for n in range(360)]
    assert judge(trend(rising, warm_up_s=300), 0.5) is Verdict.FLAT
    assert judge(trend(rising, warm_up_s=0), 0.5) is Verdict.GROWS
    assert judge(trend(rising[:20], warm_up_s=180), 0.5) is Verdict.UNCLEAR
    assert trend([], warm_up_s=180) is None


def test_what_jumps_is_judged_by_its_medians_which_a_leak_moves() -> None:
    def jumping(leak: int) -> list[Point]:
        """Between 12 and 20 as the node works, as file descriptors do; one more stays every two minutes."""
        chance = random.Random(7)
        return [Point(10.0 * n, "a", chance.choice((12, 12, 12, 13, 20)) + leak * (n // 12)) for n in range(180)]

    assert judge(trend(jumping(0), warm_up_s=0), 1.0) is Verdict.MEDIANS
    assert judge(trend(jumping(1), warm_up_s=0), 1.0) is Verdict.GROWS


def test_so_much_noise_that_a_leak_could_hide_is_no_verdict() -> None:
    assert judge(trend(life("a", 0, 10, level=60, noise=8), warm_up_s=0), 0.5) is Verdict.UNCLEAR


def test_rates_are_of_one_life_and_missing_readings_break_them() -> None:
    cpu = next(gauge for gauge in GAUGES if gauge.key == "cpu_s")
    readings = [
        {"t": 0.0, "life": "a", "cpu_s": 1.0},
        {"t": 10.0, "life": "a", "cpu_s": 1.1},
        {"t": 20.0},  # no daemon
        {"t": 30.0, "life": "b", "cpu_s": 0.5},
        {"t": 40.0, "life": "b", "cpu_s": 1.0},
    ]
    assert [(point.life, round(point.value, 3)) for point in gauges.points(cpu, readings)] == [("a", 1.0), ("b", 5.0)]


def test_the_events_are_judged_by_their_bound_and_not_by_their_slope() -> None:
    state = next(gauge for gauge in GAUGES if gauge.key == "state_without_events")
    readings = [{"t": float(n), "state_bytes": 100_000 + n * 500, "events_bytes": n * 500} for n in range(3)]
    assert {point.value for point in gauges.points(state, readings)} == {100_000 / 1024}
