"""Schedules of faults are data: a seed gives the same one again, and what is printed can be pasted back."""

from __future__ import annotations

import pytest

from tests.lab import breakages
from tests.lab.host import Unusable
from tests.lab.schedule import Schedule, Strike, draw, parse

SIMULATED = breakages.catalogue(real_engine=False)
REAL = breakages.catalogue(real_engine=True)
KINDS = breakages.kinds(SIMULATED)


def test_a_seed_gives_the_same_schedule_again_and_another_seed_another() -> None:
    drawn = [draw(seed, KINDS) for seed in range(50)]
    assert drawn == [draw(seed, KINDS) for seed in range(50)]
    assert len({schedule.strikes for schedule in drawn}) > 45


def test_what_is_printed_is_read_back_the_same() -> None:
    for seed in range(200):
        drawn = draw(seed, KINDS)
        again = parse(str(drawn), sorted(KINDS))
        assert (again.strikes, again.traffic) == (drawn.strikes, drawn.traffic)


def test_lines_can_be_taken_out_without_moving_the_others() -> None:
    whole = Schedule((Strike(1, "kill-rank", "spark2"), Strike(2.5, "link-down", "spark1", 20)), traffic=True)
    text = "\n".join(line for line in str(whole).splitlines() if "kill-rank" not in line)
    assert parse(text, sorted(KINDS)) == Schedule((Strike(2.5, "link-down", "spark1", 20.0),), traffic=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("after 3 s  kill-rnk on spark1", "no such fault"),
        ("after 3 s  kill-rank on spark9", "no such node"),
        ("kill-rank on spark1", "no line of a schedule"),
        ("traffic: perhaps", "no line of a schedule"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        parse(text, sorted(KINDS))


def test_everything_in_the_catalogue_is_drawn_sooner_or_later_and_overlaps() -> None:
    drawn = [draw(seed, KINDS) for seed in range(2000)]
    assert {strike.fault for schedule in drawn for strike in schedule.strikes} == set(SIMULATED)
    overlapping = [
        schedule
        for schedule in drawn
        if any(a.after_s + a.for_s > b.after_s for a, b in zip(schedule.strikes, schedule.strikes[1:], strict=False))
    ]
    assert len(overlapping) > 200
    assert {schedule.traffic for schedule in drawn} == {True, False}


def test_faults_strike_only_where_they_can() -> None:
    for schedule in (draw(seed, KINDS) for seed in range(500)):
        for strike in schedule.strikes:
            assert strike.node in SIMULATED[strike.fault].nodes
            assert (strike.for_s > 0) == (SIMULATED[strike.fault].mend is not None)


def test_the_real_engine_is_spared_what_only_the_simulated_one_can_do() -> None:
    assert "hang-requests" in SIMULATED
    assert "hang-requests" not in REAL
    assert {"kill-rank", "link-down", "power-cut", "docker-hung"} <= set(REAL)
