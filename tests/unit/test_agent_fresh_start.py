"""In want of what only a fresh start gives: the daemon ends with its reason, and nobody is taken for dead meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sparkd.agent.fresh_start import BORNE_MAX_S, FreshStart
from sparkd.control.node import begin
from sparkd.control.state import Me
from sparkd.host import ports, processes, procfs, usage
from sparkd.host.processes import EngineProcess
from sparkd.model.cluster import Limits
from sparkd.model.errors import SparkdError

STATE = begin(Me("spark1", 0, ("spark1",), "boot-1", "0.1.0", Limits()))
ROOM = 12  # more than are open already


def open_ones() -> set[int]:
    return {int(each.name) for each in Path("/proc/self/fd").iterdir()}


@contextlib.contextmanager
def exhausted(*, left: int = 0) -> Iterator[list[int]]:
    """This process, with `left` descriptors that it may still open. Closing one of those it yields makes room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_ones()) + ROOM, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(taken.pop())
        yield taken
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass
class Turning:
    """The turns of a daemon's loop, at times of our own."""

    directories: tuple[Path, ...]
    now: float = 100.0
    noted: list[tuple[str, str]] = field(default_factory=list)
    settled: int = 0

    def __post_init__(self) -> None:
        self.fresh_start = FreshStart(self.note, self.settle, self.directories, clock=lambda: self.now)

    def note(self, id: str, says: str, *, alarm: bool) -> None:
        self.noted.append((id, says))

    def settle(self) -> None:
        assert not self.noted, "what is told may be written to the state directory too"
        self.settled += 1

    def turn(self, after_s: float) -> None:
        self.now += after_s
        self.fresh_start.follow(STATE, STATE)


@pytest.fixture
def loop(tmp_path: Path) -> Turning:
    for name in ("state", "run"):
        (tmp_path / name).mkdir()
    return Turning((tmp_path / "state", tmp_path / "run", tmp_path / "never there"))


def test_the_daemon_ends_when_it_can_open_nothing_for_long(loop: Turning) -> None:
    loop.turn(1)
    with exhausted():
        for _ in range(3):
            loop.turn(BORNE_MAX_S / 3)
        assert not loop.noted
        with pytest.raises(SparkdError, match=r"all \d+ descriptors of the daemon are in use \(.*\d+ /dev/null"):
            loop.turn(BORNE_MAX_S / 3)
    (noted,) = loop.noted
    assert noted[0] == "agent.no-descriptors" and "the engine is left as it is" in noted[1]


def test_a_burst_is_borne(loop: Turning) -> None:
    with exhausted() as taken:
        for _ in range(2):
            for _ in range(3):
                loop.turn(BORNE_MAX_S / 3)
            os.close(taken.pop())
            loop.turn(BORNE_MAX_S)
            taken.append(os.open(os.devnull, os.O_RDONLY))
    assert not loop.noted


def test_a_directory_that_was_removed_ends_the_daemon_which_saves_first(loop: Turning) -> None:
    state, run, _ = loop.directories
    loop.turn(1)
    state.rmdir()
    run.rmdir()
    loop.turn(1)
    run.mkdir()  # as the control socket's keeper does
    loop.turn(BORNE_MAX_S - 1)
    assert not loop.noted
    with pytest.raises(SparkdError, match=f"^{state} was removed under the daemon"):
        loop.turn(1)
    (noted,) = loop.noted
    assert noted[0] == "agent.directory-gone" and loop.settled == 1


def test_a_directory_that_comes_back_is_borne(loop: Turning) -> None:
    state, *_ = loop.directories
    for _ in range(3):
        state.rmdir()
        loop.turn(BORNE_MAX_S)
        state.mkdir()
        loop.turn(BORNE_MAX_S)
    assert not loop.noted


def test_a_directory_that_cannot_be_looked_at_is_not_gone(tmp_path: Path) -> None:
    """A name that is too long is refused by the kernel as a sick disk refuses: with an error of its own."""
    loop = Turning((tmp_path / ("x" * 300),))
    for _ in range(3):
        loop.turn(BORNE_MAX_S)
    assert not loop.noted


def ourselves() -> EngineProcess:
    about = procfs.stat(os.getpid())
    assert about is not None
    return EngineProcess(os.getpid(), about.start_ticks, "python", "python", ("python",), None, None, about.ppid)


def test_who_lives_is_not_taken_for_dead() -> None:
    """With none left nothing can be read; with one left a process can be opened and not compared."""
    one = ourselves()
    with exhausted():
        for look in (
            *(lambda: procfs.stat(one.pid), processes.engine_processes, lambda: processes.open_pidfd(one)),
            *(lambda: usage.usage(one.pid), usage.everybody, lambda: ports.listeners([22])),
        ):
            with pytest.raises(OSError, match="Too many open files") as raised:
                look()
            assert procfs.ours(raised.value)
    with exhausted(left=1):
        before = open_ones()
        with pytest.raises(OSError, match="Too many open files"):
            processes.open_pidfd(one)
        assert open_ones() == before, "a descriptor leaked"
    with exhausted(left=2):
        descriptor = processes.open_pidfd(one)
        assert descriptor is not None
        os.close(descriptor)


def test_half_a_list_is_none(tmp_path: Path) -> None:
    """One descriptor lists /proc, and the next look into a process fails."""
    for pid in ("4711", "4712"):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(b"VLLM::EngineCore\0")
    with exhausted(left=1) as taken:
        real = os.listdir

        def listing(path: Path) -> list[str]:
            found = real(path)
            taken.append(os.open(os.devnull, os.O_RDONLY))  # somebody else took the last one
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "listdir", listing)
            with pytest.raises(OSError, match="Too many open files"):
                processes.engine_processes(tmp_path)
