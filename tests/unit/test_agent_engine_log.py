"""A chatty engine does not fill the disk: its log keeps its beginning and its newest lines."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from sparkd.agent.engine_log import EngineLogLimit, limit, older
from sparkd.control import node as control
from sparkd.control.state import Launch, Me
from sparkd.host.paths import Paths
from sparkd.model.cluster import Limits
from sparkd.model.report import Phase, launch_id

BOOT = "de1ba6cc-f15e-48ca-a771-83cc6dc06c88"
MIB = 1 << 20


def write(path: Path, lines: int, *, width: int = 100) -> None:
    with path.open("a") as file:
        for number in range(lines):
            file.write(f"line {number:07} ".ljust(width - 1, ".") + "\n")


def test_a_log_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "aa-1.log"
    write(path, 100)
    before = path.read_bytes()
    assert limit(path, len(before)) == ""
    assert path.read_bytes() == before
    assert not older(path).exists()


def test_a_large_log_keeps_its_beginning_and_its_end_and_the_rest_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "aa-1.log"
    write(path, 60_000)  # 6 MB
    whole = path.read_text()
    assert "5 MiB" in limit(path, 4 * MIB)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("line 0000000 ")
    assert lines[-1].startswith("line 0059999 ")
    assert sum(line.startswith("--- sparkd: 6000000 bytes were too many") for line in lines) == 1
    assert path.stat().st_size < 2 * MIB
    kept = whole[: path.read_text().index("--- sparkd")]
    assert kept + older(path).read_text() == whole, "a line is in neither"
    assert older(path).stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir() if ".new" in file.name] == []


def test_it_stays_bounded_however_often_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "aa-1.log"
    for _ in range(6):
        write(path, 15_000)  # 1.5 MB
        limit(path, MIB)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3.5 * MIB
    assert path.read_text().splitlines()[-1].startswith("line 0014999 ")


def test_the_engine_goes_on_writing_where_the_log_was_cut(tmp_path: Path) -> None:
    """As the unit does it: a process that holds the file open since long before, by `>>`."""
    path = tmp_path / "aa-1.log"
    write(path, 30_000)
    writer = subprocess.Popen(
        ["bash", "-c", f"exec >>{path}; echo begun; read -r; echo after the cut"], stdin=subprocess.PIPE
    )
    assert writer.stdin
    try:
        deadline = time.monotonic() + 10
        while "begun" not in path.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        limit(path, MIB)
        writer.communicate(b"\n", timeout=10)
    finally:
        writer.kill()
    text = path.read_bytes()
    assert text.endswith(b"begun\nafter the cut\n")
    assert b"\0" not in text, "the file has a hole where the writer went on at its old place"


def test_lines_written_during_the_cut_are_kept(tmp_path: Path) -> None:
    path, over = tmp_path / "aa-1.log", threading.Event()
    write(path, 30_000)
    written = []

    def chatter() -> None:
        with path.open("a", buffering=1) as file:
            while not over.is_set():
                file.write(f"chat {len(written)}\n")
                written.append(1)
                time.sleep(0.001)

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        limit(path, MIB)
    finally:
        over.set()
        thread.join(timeout=10)
    both = (older(path).read_text() + path.read_text()).splitlines()
    lost = [n for n in range(len(written)) if f"chat {n}" not in both]
    assert len(lost) <= 2, "no more than what came in the moment of the cut"


def test_where_nothing_can_be_kept_beside_it_the_disk_is_saved_and_not_the_log(tmp_path: Path) -> None:
    path = tmp_path / "aa-1.log"
    write(path, 30_000)
    (tmp_path / "aa-1.log.1.new").mkdir()  # stands for a disk that has no room
    with pytest.raises(OSError):
        (tmp_path / "aa-1.log.1.new").open("wb")
    says = limit(path, MIB)
    assert "given up" in says
    assert path.stat().st_size < MIB
    assert path.read_text().splitlines()[-1].startswith("line 0029999 ")


def test_the_daemon_looks_after_the_log_of_the_launch_that_lives(tmp_path: Path) -> None:
    paths = Paths(logs=tmp_path)
    path = paths.engine_log(launch_id(BOOT, 18))
    path.parent.mkdir()
    write(path, 30_000)
    notes: list[str] = []

    class Daemon:
        """Of the agent only what a follower of its turns uses."""

        on_turn: ClassVar[list[object]] = []

        def note(self, id: str, says: str, *, alarm: bool = False) -> None:
            notes.append(id)

    idle = control.begin(Me("spark1", 0, ("spark1",), BOOT, "0.1.0", Limits()))
    serving = replace(idle, phase=Phase.SERVING, epoch=18, launch=Launch(18, seen=True))

    async def test() -> None:
        limiting = EngineLogLimit(Daemon(), paths, MIB)  # type: ignore[arg-type]
        limiting.follow(idle, idle)
        assert path.stat().st_size > MIB
        limiting.follow(idle, serving)
        limiting.follow(serving, serving)  # a minute has not passed
        until = time.monotonic() + 10
        while not notes and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await limiting.close()

    asyncio.run(test())
    assert notes == ["engine.log-shortened"]
    assert path.stat().st_size < MIB
