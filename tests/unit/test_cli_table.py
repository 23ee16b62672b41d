"""The status as a person reads it, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_daemon import BACKOFF, BLOCKED, BLOCKED_THERE, LOADING, SERVING, STOPPED, WAITING

from sparkd.cli.output import painter
from sparkd.cli.table import duration, status_line, status_text
from sparkd.model.status import Status

GOLDEN = Path(__file__).resolve().parents[1] / "data/cli"
STATES = {
    "serving": SERVING,
    "loading": LOADING,
    "blocked": BLOCKED,
    "blocked-there": BLOCKED_THERE,
    "waiting": WAITING,
    "backoff": BACKOFF,
    "stopped": STOPPED,
}


@pytest.mark.parametrize("name", STATES)
def test_status_reads_as_kept(name: str) -> None:
    assert status_text(STATES[name].model_dump(mode="json")) + "\n" == (GOLDEN / f"status-{name}.txt").read_text()


def test_colours_change_nothing_but_the_colour() -> None:
    import re

    answer = BLOCKED.model_dump(mode="json")
    coloured = status_text(answer, painter(True))
    assert "\033[31m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == status_text(answer)


def test_the_line_for_logs_does_not_change_by_the_clock_alone() -> None:
    def line(status: Status, **facts: object) -> str:
        return status_line(status.model_copy(update=facts).model_dump(mode="json"))

    assert line(SERVING) == line(SERVING, since_s=900.0, proof_age_s=1.0)
    assert line(SERVING) != line(SERVING, epoch=19)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations_have_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said
