"""When the baseline of an epoch is written: once it has held, once, and never in the way of anything."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sparkd.agent import baselines
from sparkd.agent.baselines import AGAIN_S, TRIES_MAX, BaselineWriter, Held, hold, is_due
from sparkd.agent.ourselves import Ourselves
from sparkd.control import node as control
from sparkd.control.state import Me, NodeState
from sparkd.host.paths import Paths
from sparkd.model.cluster import Limits
from sparkd.model.report import Gate, Intent, Phase

ME = Me("spark2", 1, ("spark1", "spark2"), "b" * 32, "0.1.0", Limits(hold_s=0.05))


def serving(epoch: int = 18, *, proven: bool = True) -> NodeState:
    intent = Intent(run=True, epoch=epoch, gate=Gate.ALL, serving=proven)
    return replace(control.begin(ME), phase=Phase.SERVING, epoch=epoch, intent=intent)


def test_it_is_due_when_it_has_held_without_a_pause() -> None:
    held = hold(Held(), epoch=18, serving=True, now=100)
    assert not is_due(held, hold_s=300, now=399)
    assert is_due(held, hold_s=300, now=400)
    paused = hold(hold(held, epoch=18, serving=False, now=390), epoch=18, serving=True, now=391)
    assert not is_due(paused, hold_s=300, now=690)
    assert is_due(paused, hold_s=300, now=691)


def test_another_epoch_begins_anew() -> None:
    tried = replace(hold(Held(), epoch=18, serving=True, now=0), tries=TRIES_MAX, tried_at=300)
    assert not is_due(tried, hold_s=300, now=10_000)
    assert is_due(hold(tried, epoch=19, serving=True, now=10_000), hold_s=300, now=10_300)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.5, 500)), max_size=60))
def test_it_is_never_tried_more_than_twice_nor_soon_again(steps: list[tuple[bool, float]]) -> None:
    held, now, tried = Held(), 0.0, []
    for is_serving, after_s in steps:
        now += after_s
        held = hold(held, epoch=1, serving=is_serving, now=now)
        if is_due(held, hold_s=300, now=now):
            tried.append(now)
            held = replace(held, tries=held.tries + 1, tried_at=now)
    assert len(tried) <= TRIES_MAX
    assert all(later - earlier >= AGAIN_S for earlier, later in itertools.pairwise(tried))


class Daemon:
    """Of the agent only what a follower of its turns uses."""

    def __init__(self) -> None:
        self.on_turn: list[object] = []
        self.notes: list[tuple[str, str]] = []

    def note(self, id: str, says: str, *, alarm: bool = False) -> None:
        self.notes.append((id, says))


async def turns(writer: BaselineWriter, state: NodeState, seconds: float) -> None:
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        writer.follow(state, state)
        await asyncio.sleep(0.01)


def written(tmp_path: Path, body: str, state: NodeState) -> tuple[list[tuple[str, str]], int]:
    """The notes, and how often the command ran."""
    file, count = tmp_path / "sparkd.py", tmp_path / "runs"
    file.write_text(f"import sys\nopen({str(count)!r}, 'a').write('x')\n{body}\n")
    daemon = Daemon()

    async def test() -> None:
        ourselves = Ourselves(tmp_path / "sparkd.yaml", "spark2", program=(sys.executable, str(file)))
        writer = BaselineWriter(daemon, ourselves, Paths(state=tmp_path))  # type: ignore[arg-type]
        await turns(writer, state, 1.0)
        await writer.close()

    asyncio.run(asyncio.wait_for(test(), 30))
    return daemon.notes, len(count.read_text()) if count.exists() else 0


def test_it_is_written_once(tmp_path: Path) -> None:
    notes, runs = written(tmp_path, "print('written for', sys.argv[3])", serving())
    assert notes == [("baseline.written", "written for 18")]
    assert runs == 1


def test_a_failure_is_noted_and_nothing_else(tmp_path: Path) -> None:
    notes, runs = written(tmp_path, "sys.exit('no room')", serving())
    assert [id for id, _ in notes] == ["baseline.not-written"]
    assert "no room" in notes[0][1]
    assert runs == 1, "the second try comes later"


def test_what_exists_is_not_written_again(tmp_path: Path) -> None:
    """A daemon that adopted the engine: its predecessor wrote it."""
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines/epoch-18-2026-11-21T10:53:04Z.json").write_text("{}")
    assert written(tmp_path, "", serving(18)) == ([], 0)
    assert not baselines.exists(tmp_path / "baselines", 1)
    assert written(tmp_path, "print('x')", serving(1))[1] == 1


def test_one_of_an_earlier_boot_is_another_launch(tmp_path: Path) -> None:
    """A node that lost its state counts its epochs from the beginning."""
    (tmp_path / "baselines").mkdir()
    old = tmp_path / "baselines/epoch-18-2025-11-21T10:53:04Z.json"
    old.write_text("{}")
    os.utime(old, (1e9, 1e9))
    assert written(tmp_path, "print('x')", serving(18))[1] == 1


def test_what_the_head_has_not_proven_is_no_baseline(tmp_path: Path) -> None:
    assert written(tmp_path, "", serving(proven=False)) == ([], 0)
    assert written(tmp_path, "", replace(serving(), phase=Phase.LOADING)) == ([], 0)
