"""The daemon's short-lived sparkd: real processes, bounded in time and output, shared by those who ask."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from sparkd.agent.ourselves import Ourselves, only_node
from sparkd.host.capture import capture
from sparkd.model.errors import SparkdError

LIMIT_S = 30.0


def program(tmp_path: Path, body: str) -> Ourselves:
    """A `sparkd` that does this, with what it was called with in `sys.argv` and a file that counts its runs."""
    file = tmp_path / "sparkd.py"
    count = tmp_path / "runs"
    file.write_text(f"import json, os, sys, time\nopen({str(count)!r}, 'a').write('x')\n{body}\n")
    return Ourselves(tmp_path / "sparkd.yaml", "spark2", program=(sys.executable, str(file)))


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text())


EXAMINATION = """
node = {'node': os.environ['SPARKD_NODE'], 'argv': sys.argv[1:]}
print(json.dumps({'schema_version': 1, 'nodes': [node]}, indent=2))
"""


def test_it_is_asked_for_this_node_alone(tmp_path: Path) -> None:
    async def test() -> None:
        ourselves = program(tmp_path, EXAMINATION + "\nsys.exit(2)")  # a doctor that found something did its work
        told = await ourselves.diagnosis()
        assert b"\n" not in told
        assert json.loads(told) == {"node": "spark2", "argv": ["doctor", "--json", "--no-peer"]}
        await ourselves.close()

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def test_it_does_not_speak_for_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither READY nor the watchdog; what systemd gave the daemon otherwise is passed on."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))

    async def test() -> None:
        ourselves = program(tmp_path, "print(json.dumps({'nodes': [dict(os.environ)]}))")
        told = json.loads(await ourselves.diagnosis())
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & told.keys()
        assert (told["STATE_DIRECTORY"], told["SPARKD_CONFIG"]) == (str(tmp_path), str(tmp_path / "sparkd.yaml"))
        await ourselves.close()

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def test_askers_share_one_run(tmp_path: Path) -> None:
    async def test() -> None:
        ourselves = program(tmp_path, "time.sleep(0.3)\n" + EXAMINATION)
        first = asyncio.create_task(ourselves.diagnosis())
        second = asyncio.create_task(ourselves.diagnosis())
        await asyncio.sleep(0.1)
        first.cancel()  # takes nobody else's answer along
        assert json.loads(await second)["node"] == "spark2"
        assert runs(tmp_path) == 1
        await asyncio.sleep(0)
        assert ourselves._examining is None, "the bytes are not kept: who asks again has mended something"
        await ourselves.diagnosis()
        assert runs(tmp_path) == 2
        await ourselves.close()

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("print('{')", "no examination"),
        ("print('[]')", "no examination"),
        ("print(json.dumps({'nodes': []}))", "no examination"),
        ('print(\'{"error": {"message": "the key is missing"}}\'); sys.exit(2)', "the key is missing"),
        ("sys.exit('a usage error')", "a usage error"),
        ("print('so and so', file=sys.stderr); sys.exit(64)", "exited with status 64: so and so"),
        ("while True: print('x' * 1000000)", "printed more than"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_what_a_broken_doctor_says_is_an_error_in_words(tmp_path: Path, body: str, why: str) -> None:
    async def test() -> None:
        ourselves = program(tmp_path, body)
        with pytest.raises(SparkdError, match=why):
            await ourselves.diagnosis()
        await ourselves.close()

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    code = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "300"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(300)
"""

    async def test() -> None:
        began = time.monotonic()
        with pytest.raises(SparkdError, match=r"did not end within 1\.5 s and was killed"):
            await capture([sys.executable, "-c", code], timeout_s=1.5, max_bytes=100)
        assert time.monotonic() - began < 4

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_what_it_left_behind_is_killed_when_its_own_process_has_ended(tmp_path: Path) -> None:
    """A stray that holds the output open: the command itself has exited and has been waited for."""
    code = f"""
import os, subprocess
child = subprocess.Popen(["sleep", "300"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
"""

    async def test() -> None:
        with pytest.raises(SparkdError, match=r"did not end within 1\.5 s"):
            await capture([sys.executable, "-c", code], timeout_s=1.5, max_bytes=100)

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_the_daemon_starts_goes_before_the_daemon_where_memory_runs_short(tmp_path: Path) -> None:
    read = "open('/proc/self/oom_score_adj').read()"
    code = f"from sparkd.cli import main; main._run = lambda _: print({read}); main.main()"

    async def test() -> None:
        ourselves = Ourselves(tmp_path / "sparkd.yaml", "spark1", program=(sys.executable, "-c", code))
        assert await ourselves.write_baseline(1, limit_s=10) == "500"

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def gone(pid: int) -> bool:
    """Also as an orphan that its new parent has not yet waited for."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_one_that_is_no_longer_wanted_is_killed(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(300)"

    async def test() -> None:
        running = asyncio.create_task(capture([sys.executable, "-c", code], timeout_s=60, max_bytes=100))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_program_that_is_not_there() -> None:
    async def test() -> None:
        with pytest.raises(SparkdError, match="cannot run /nonexistent/sparkd"):
            await capture(["/nonexistent/sparkd"], timeout_s=1, max_bytes=10)

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_of_a_long_line_of_runs_is_left(tmp_path: Path) -> None:
    async def test() -> None:
        before, tasks = descriptors(), len(asyncio.all_tasks())
        for _ in range(20):
            assert await capture(["echo", "x"], timeout_s=5, max_bytes=10) == b"x\n"
        await asyncio.sleep(0.1)
        assert descriptors() <= before + 2
        assert len(asyncio.all_tasks()) == tasks

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def test_a_baseline_is_written_by_the_command(tmp_path: Path) -> None:
    async def test() -> None:
        good = program(tmp_path, "print('written:', *sys.argv[1:])")
        assert await good.write_baseline(18, limit_s=10) == "written: baseline --epoch 18"
        bad = program(tmp_path, "print('no room on the disk', file=sys.stderr); sys.exit(2)")
        with pytest.raises(SparkdError, match="exited with status 2: no room on the disk"):
            await bad.write_baseline(18, limit_s=10)

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def test_a_diagnosis_is_one_line() -> None:
    examined = json.dumps({"nodes": [{"node": "ö", "lines": ["a\nb"] * 1000}]}, indent=2).encode()
    assert b"\n" not in only_node(examined)
    assert json.loads(only_node(examined))["lines"][0] == "a\nb"
