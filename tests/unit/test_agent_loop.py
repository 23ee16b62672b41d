"""The loop beside its decisions: what a disk that refuses makes of it."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from sparkd.agent.journal import Journal
from sparkd.agent.loop import Agent
from sparkd.agent.store import Store
from sparkd.control.state import Failed, Look, Me, Started, Tick, Told
from sparkd.host.paths import Paths
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure
from sparkd.model.report import Gate, Intent, Saved

ME = Me("spark2", 1, ("spark1", "spark2"), "b" * 32, "0.1.0", Limits())


def said(agent: Agent) -> list[str]:
    return [record["id"] for record in agent.journal.last(100)]


def test_a_state_that_cannot_be_saved_is_said_once_and_saved_when_it_can_be(tmp_path: Path) -> None:
    """A file in the place of the directory refuses as a full disk does, and takes it back as one that was emptied."""
    paths = Paths(state=tmp_path / "state", runtime=tmp_path / "run", logs=tmp_path / "log")
    paths.state.write_text("no directory")

    async def test() -> None:
        effects: Any = None  # a worker without a word of the head asks for none
        agent = Agent(ME, effects, Store(paths), Journal(tmp_path / "events.jsonl"))
        agent.turn(Started(None, (), ()))
        for epoch in range(3, 9):
            agent.turn(Told(Intent(run=bool(epoch % 2), epoch=epoch, gate=Gate.ENDED)))
            agent._settle_at = 0.0
            agent.turn(Tick())
        assert said(agent).count("state.not-saved") == 1
        assert "state.saved" not in said(agent)
        kept = Store(paths).load()
        assert kept is not None and kept.boot_id == ME.boot_id  # in /run

        paths.state.unlink()
        agent._settle_at = 0.0
        agent.turn(Tick())
        assert said(agent)[-1] == "state.saved"
        assert paths.saved.exists() and not (paths.runtime / "state.json").exists()
        agent.turn(Tick())
        assert said(agent).count("state.saved") == 1

    asyncio.run(test())


def test_what_the_last_life_could_not_save_is_saved_by_the_next(tmp_path: Path) -> None:
    """Nothing else may change for hours: a reboot would forget what runs."""
    paths = Paths(state=tmp_path / "state", runtime=tmp_path / "run", logs=tmp_path / "log")
    paths.state.write_text("no directory")
    saved = Saved(boot_id=ME.boot_id, epoch=7)
    with pytest.raises(OSError):
        Store(paths).save(saved)

    async def test() -> None:
        effects: Any = None
        store, stop = Store(paths), asyncio.Event()
        agent = Agent(ME, effects, store, Journal(tmp_path / "events.jsonl"))
        paths.state.unlink()
        stop.set()
        await agent.run(Started(store.load(), (), ()), stop)
        assert paths.saved.exists() and not (paths.runtime / "state.json").exists()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("error", "id", "cure", "traces"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "step.want", Cure.WAIT, 0),
        (OSError(errno.EIO, "Input/output error"), "sparkd.bug", Cure.RELAUNCH, 1),
        (KeyError("x"), "sparkd.bug", Cure.RELAUNCH, 1),
    ],
)
def test_what_the_daemon_itself_lacks_costs_no_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, id: str, cure: Cure, traces: int
) -> None:
    class Effects:
        def look(self) -> None:
            raise error

    async def test() -> None:
        effects: Any = Effects()
        paths = Paths(state=tmp_path / "state", runtime=tmp_path / "run", logs=tmp_path / "log")
        agent = Agent(ME, effects, Store(paths), Journal(tmp_path / "events.jsonl"))
        agent._carry_out(Look())
        event = await asyncio.wait_for(agent._queue.get(), 10)
        assert isinstance(event, Failed) and (event.finding.id, event.finding.cure) == (id, cure)

    asyncio.run(test())
    assert sum(record.exc_info is not None for record in caplog.records) == traces
