"""`sparkd logs`: real files, as a growing engine log is."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from cli_daemon import Home

from sparkd.agent.engine_log import limit


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "log/engine").mkdir(parents=True)
    return Home(tmp_path)


def write(home: Home, launch: str, text: str, *, at: int) -> Path:
    path = home.directory / f"log/engine/{launch}.log"
    path.write_text(text)
    os.utime(path, (at, at))
    return path


def test_the_newest_launch_its_last_lines(home: Home) -> None:
    write(home, "aaaaaaaa-1", "old\n", at=1000)
    long = "".join(f"line {number} {'x' * 60}\n" for number in range(5000))
    write(home, "aaaaaaaa-2", long, at=2000)
    assert home.sparkd("logs", "-n", "2").stdout == "".join(long.splitlines(keepends=True)[-2:])
    assert home.sparkd("logs", "-n", "4000").stdout == "".join(long.splitlines(keepends=True)[-4000:])
    assert home.sparkd("logs", "-n", "9999").stdout == long
    assert home.sparkd("logs", "-n", "0").stdout == ""
    assert home.sparkd("logs", "--launch", "aaaaaaaa-1").stdout == "old\n"


def test_a_clock_that_was_set_back_hides_no_launch(home: Home) -> None:
    write(home, "aaaaaaaa-1", "old\n", at=4_000_000_000)
    write(home, "aaaaaaaa-2", "new\n", at=1000)
    (home.directory / "run").mkdir(exist_ok=True)
    (home.directory / "run/engine.env").write_text("SPARKD_LAUNCH_ID=aaaaaaaa-2\n")
    assert home.sparkd("logs").stdout == "new\n"
    (home.directory / "run/engine.env").write_text("SPARKD_LAUNCH_ID='it is broken\n")
    assert home.sparkd("logs").stdout == "old\n"


def test_a_last_line_without_its_end_is_a_line(home: Home) -> None:
    write(home, "aaaaaaaa-1", "one\ntwo\nthr", at=1000)
    assert home.sparkd("logs", "-n", "2").stdout == "two\nthr"
    lines = [json.loads(line) for line in home.sparkd("logs", "-n", "2", "--json").stdout.splitlines()]
    assert lines == [{"launch": "aaaaaaaa-1", "line": "two"}, {"launch": "aaaaaaaa-1", "line": "thr"}]


def test_following_goes_over_to_the_next_launch(home: Home) -> None:
    first = write(home, "aaaaaaaa-1", "loading\n", at=1000)
    with home.running("logs", "-f") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        with first.open("a") as file:
            file.write("dying\n")
        assert process.stdout.readline() == "dying\n"
        write(home, "aaaaaaaa-2", "again\n", at=4_000_000_000)
        assert process.stdout.readline() == "again\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, "sparkd: launch aaaaaaaa-2 begins")


def test_following_survives_a_log_that_was_shortened(home: Home) -> None:
    path = write(home, "aaaaaaaa-1", "".join(f"line {n} {'x' * 80}\n" for n in range(30_000)), at=1000)
    with home.running("logs", "-f", "-n", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("line 29999 ")
        assert limit(path, 1 << 20)
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(0.05):
                with path.open("a") as file:
                    file.write("after the cut\n")

        writer = threading.Thread(target=go_on)
        writer.start()
        try:
            assert process.stdout.readline() == "after the cut\n"
        finally:
            over.set()
            writer.join(timeout=10)
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_what_is_not_there_is_said(home: Home) -> None:
    assert "no engine was launched here yet" in home.sparkd("logs").stderr
    write(home, "aaaaaaaa-1", "x\n", at=1000)
    missing = home.sparkd("logs", "--launch", "aaaaaaaa-9")
    assert missing.returncode == 2 and "hint: kept are: aaaaaaaa-1" in missing.stderr
    assert home.sparkd("logs", "--launch", "../../etc/passwd").returncode == 64
