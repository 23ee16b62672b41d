"""`sparkd doctor` as a person meets it: a real process on a machine with little to see, its first line, its exit status."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cli_daemon import CHECKOUT, SERVING, Daemon, Home

from sparkd.doctor.declared import every_check
from sparkd.model.diagnosis import Diagnosis, Examination
from sparkd.model.finding import Finding, Verdict

CONFIG = CHECKOUT / "config/sparkd.yaml"
FIELD = CHECKOUT / "tests/data/field"
AT = "2026-11-21T10:00:00Z"
GROWN = Finding(id="memory.leaking-daemon", verdict=Verdict.BAD, says="dockerd holds 31 GiB", layer="host-memory")
MTU = Finding(id="link.mtu", verdict=Verdict.BAD, says="bond0 has MTU 1500", layer="link")


@dataclass
class Neighbourly(Daemon):
    """A daemon that has asked the other nodes."""

    neighbours: list[dict[str, Any]] = field(default_factory=list)

    def verbs(self) -> dict[str, Any]:
        return {**super().verbs(), "diagnose": self._diagnose}

    async def _diagnose(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for answer in self.neighbours:
            yield answer


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def told(done: subprocess.CompletedProcess[str]) -> Examination:
    assert "Traceback" not in done.stderr, done.stderr
    return Examination.model_validate_json(done.stdout)


# --- looking at this machine -------------------------------------------------------------------------


def test_without_daemon_docker_and_configuration_it_says_what_it_could_not_see(home: Home) -> None:
    arguments = ("doctor", "--config", str(home.directory / "none.yaml"))
    done, as_json = home.sparkd(*arguments, "-v"), home.sparkd(*arguments, "--json")
    assert done.returncode in (2, 3) and not done.stderr
    assert (
        "not seen: " in done.stdout and "no configuration" in done.stdout and "no word from the daemon" in done.stdout
    )
    assert "\033" not in done.stdout
    found = told(as_json)
    assert as_json.returncode == {"bad": 2, "warning": 1, "unknown": 3, "good": 0}[found.verdict.value]
    assert len(found.nodes) == 1 and found.nodes[0].node == socket.gethostname()


def test_a_broken_configuration_is_the_first_line(home: Home) -> None:
    broken = home.directory / "sparkd.yaml"
    broken.write_text("clutser: {}\n")
    done = home.sparkd("doctor", "--config", str(broken), "--only", "logs")
    assert done.returncode == 2
    assert done.stdout.splitlines()[0].startswith(f"{socket.gethostname()}: config.invalid: {broken}")


def test_the_other_nodes_diagnosis_is_told_with_ours(home: Home) -> None:
    there = Diagnosis(node="spark2", rank=1, at=AT, findings=(GROWN, MTU))
    daemon = Neighbourly([SERVING], neighbours=[{"node": "spark2", "diagnosis": there.model_dump(mode="json")}])
    arguments = ("doctor", "--config", str(CONFIG), "--node", "spark1", "--only", "memory.leaking-daemon")
    with home.daemon(daemon):
        done, as_json, alone = (
            home.sparkd(*arguments),
            home.sparkd(*arguments, "--json"),
            home.sparkd(*arguments, "--no-peer"),
        )
    assert done.stdout.splitlines()[0] == f"spark2: {GROWN.id}: {GROWN.says}" and done.returncode == 2
    assert "link.mtu" not in as_json.stdout, "it was not asked for"
    found = told(as_json)
    assert [each.node for each in found.nodes] == ["spark1", "spark2"] and not found.absent
    assert found.headline is not None and found.headline.node == "spark2"
    assert "spark2" not in alone.stdout


def test_a_node_that_does_not_answer_is_absent_and_nothing_worse(home: Home) -> None:
    arguments = ("doctor", "--config", str(CONFIG), "--node", "spark1", "--only", "memory.low-available", "--json")
    with home.daemon(Neighbourly([SERVING], neighbours=[{"node": "spark2", "absent": "no route to 10.0.0.2"}])):
        silent = told(home.sparkd(*arguments))
    assert silent.absent == {"spark2": "no route to 10.0.0.2"} and silent.verdict in (Verdict.UNKNOWN, Verdict.WARNING)
    with home.daemon(Neighbourly([SERVING], neighbours=[{"node": "spark2", "diagnosis": {"node": 3}}])):
        garbled = told(home.sparkd(*arguments))
    assert "cannot be read" in garbled.absent["spark2"]
    with home.daemon(Daemon([SERVING])):  # an older daemon, which knows no such question
        older = told(home.sparkd(*arguments))
    assert "diagnose" in older.absent["spark2"]
    without = told(home.sparkd(*arguments))
    assert "sparkd is not running on this node" in without.absent["spark2"]


def test_serving_is_told_in_the_first_line_where_nothing_is_wrong(home: Home) -> None:
    arguments = ("doctor", "--config", str(CONFIG), "--node", "spark1", "--no-peer", "--only", "memory.leaking-daemon")
    with home.daemon(Daemon([SERVING])):
        done = home.sparkd(*arguments)
    assert "serving for 3 min 20 s, epoch 18, last proof 12 s ago" in done.stdout
    assert done.returncode in (0, 1)


def test_unknown_names_are_refused_with_what_was_meant_perhaps(home: Home) -> None:
    done = home.sparkd("doctor", "--only", "link.mtv")
    assert done.returncode == 64 and not done.stdout
    assert "there is no check or layer 'link.mtv'" in done.stderr and "did you mean link.mtu" in done.stderr
    assert home.sparkd("doctor", "--skip", "nonsense").returncode == 64
    assert home.sparkd("doctor", "--yes").returncode == 64
    assert home.sparkd("doctor", "--source", "journal").returncode == 64


def test_only_a_layer(home: Home) -> None:
    found = told(home.sparkd("doctor", "--no-peer", "--only", "host-memory", "--json"))
    assert {each.layer for each in found.nodes[0].findings} == {"host-memory"}
    skipped = told(home.sparkd("doctor", "--no-peer", "--only", "host-memory", "--skip", "memory.short", "--json"))
    assert all(each.id != "memory.short" for each in skipped.nodes[0].findings)


def test_the_checks_are_listed(home: Home) -> None:
    done, as_json = home.sparkd("doctor", "--list"), home.sparkd("doctor", "--list", "--json")
    rows = json.loads(as_json.stdout)
    assert done.returncode == as_json.returncode == 0
    assert [row["id"] for row in rows] == [each.id for each in every_check()] and len(rows) >= 60
    assert all(row["question"].endswith("?") and row["id"] in done.stdout for row in rows)


def test_a_reader_that_has_enough_is_no_error(home: Home) -> None:
    with home.running("doctor", "--no-peer", "-v") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=60)
    assert err == ""


# --- everything hangs --------------------------------------------------------------------------------


def hang_everything(home: Home) -> dict[str, str]:
    """Tools that never end; beside them a daemon's socket and a Docker that accept and never answer."""
    tools = home.directory / "tools"
    tools.mkdir()
    for tool in ("nvidia-smi", "journalctl", "systemctl", "docker", "ethtool", "ip", "dmesg", "rdma", "lspci", "ss"):
        (tools / tool).write_text("#!/bin/sh\nexec sleep 60\n")
        (tools / tool).chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}", "DOCKER_HOST": f"unix://{home.directory}/docker.sock"}


def started_with(words: str) -> list[int]:
    """Living processes with these words in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if words.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def eventually(is_so: Callable[[], bool], limit_s: float = 5.0) -> bool:
    until = time.monotonic() + limit_s
    while not (answer := is_so()) and time.monotonic() < until:
        time.sleep(0.05)
    return answer


def test_with_everything_hung_it_ends_within_five_seconds(home: Home) -> None:
    environment = hang_everything(home)
    (home.directory / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as docker, socket.socket(socket.AF_UNIX) as daemon:
        for listening, name in ((docker, "docker.sock"), (daemon, "run/sparkd.sock")):
            listening.bind(str(home.directory / name))
            listening.listen()
        began = time.monotonic()
        done = home.sparkd("doctor", "--config", str(CONFIG), "--node", "spark1", **environment)
        took_s = time.monotonic() - began
    assert took_s < 8, f"{took_s:.1f} s"  # 5 s on a machine that has nothing else to do
    assert done.returncode in (1, 2, 3) and not done.stderr
    assert "no word from the daemon" in done.stdout and "spark2 was not examined" in done.stdout
    assert eventually(lambda: not started_with(str(home.directory / "tools"))), "tools that hang outlive nobody"


def apart(work: str, tell: str = "return found", *, limit_s: float = 5.0) -> tuple[subprocess.CompletedProcess[str], float]:
    """A program that carries `work` out apart, and how long whoever reads its output had to wait."""
    program = f"""
import sys, threading, time
from sparkd.cli.apart import apart
from sparkd.model.errors import SparkdError
def work():
    {work}
def tell(found):
    {tell}
try:
    sys.exit(apart(work, tell, until=time.monotonic() + {limit_s}))
except SparkdError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=CHECKOUT, timeout=60, check=False
    )
    return done, time.monotonic() - began


def test_a_thread_that_never_ends_keeps_nobody() -> None:
    """Neither the exit nor the end of the output: a non-daemon thread stands for one that even a signal does not reach."""
    done, took_s = apart("threading.Thread(target=time.sleep, args=(30,)).start(); print('told'); return 1")
    assert (done.returncode, done.stdout, done.stderr) == (1, "told\n", "") and took_s < 15


def test_an_examination_that_hangs_is_given_up() -> None:
    done, took_s = apart("time.sleep(30)", limit_s=0.5)
    assert done.returncode == 3 and "the examination itself hangs" in done.stderr and took_s < 15


def test_what_is_being_told_is_not_cut() -> None:
    """Half of a JSON object, and an error behind it, would be neither."""
    done, _ = apart("return 1", "print('one', flush=True); time.sleep(1.5); print('two'); return found", limit_s=0.5)
    assert (done.returncode, done.stdout, done.stderr) == (1, "one\ntwo\n", "")


def test_what_a_hung_examination_started_ends_with_it(tmp_path: Path) -> None:
    program = tmp_path / "hung-tool"
    program.symlink_to("/bin/sleep")
    mark = {"HUNG_TOOL": str(program)}
    work = f"from sparkd.host.run import run; run([{str(program)!r}, '300'], timeout_s=300, env={mark!r})"
    done, _ = apart(work, limit_s=1.5)
    assert done.returncode == 3 and "the examination itself hangs" in done.stderr
    assert eventually(lambda: not started_with(str(program)))


def test_one_that_dies_or_fails_is_told() -> None:
    died, _ = apart("import os; os.kill(os.getpid(), 9)")
    assert died.returncode == 3 and "was killed" in died.stderr
    failed, _ = apart("raise SparkdError('no such thing', hint='look again')")
    assert failed.returncode == 2 and "no such thing" in failed.stderr and "hint: look again" in failed.stderr
    unforeseen, _ = apart("return 1 // 0")
    assert (
        unforeseen.returncode == 2 and "ZeroDivisionError" in unforeseen.stderr and "Traceback" not in unforeseen.stderr
    )


# --- a log from anywhere ---------------------------------------------------------------------------


def test_a_log_is_named_by_its_incident(home: Home) -> None:
    done = home.sparkd("doctor", "--log", str(FIELD / "worker-without-headless.log"))
    assert done.returncode == 2 and done.stdout.startswith("script-worker-without-headless: ")
    assert "  do:     " in done.stdout and "  seen:   " in done.stdout


def test_a_healthy_log_says_nothing(home: Home) -> None:
    done = home.sparkd("doctor", "--log", str(FIELD / "single-cold-start.log"), "--source", "vllm-log")
    assert (done.returncode, done.stdout) == (0, "nothing wrong was recognised\n")


def test_several_logs_packed_ones_and_stdin(home: Home) -> None:
    packed = home.directory / "engine.log.1.gz"
    log = (FIELD / "unknown-flag.log").read_bytes()
    packed.write_bytes(gzip.compress(log[:100]) + gzip.compress(log[100:]))
    healthy = FIELD / "single-cold-start.log"
    done = home.sparkd("doctor", "--log", str(packed), "--log", str(healthy))
    first, *_ = done.stdout.splitlines()
    assert done.returncode == 2 and first.startswith(f"{packed}: script-unknown-flag")
    assert f"{healthy}: nothing wrong was recognised" in done.stdout
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPARKD_")}
    piped = subprocess.run(
        [sys.executable, "-m", "sparkd", "doctor", "--log", "-", "--json"],
        input=log, capture_output=True, cwd=CHECKOUT, env=kept, timeout=60, check=False,
    )  # fmt: skip
    answer = json.loads(piped.stdout)
    assert piped.returncode == 2 and answer["files"][0]["incidents"][0]["id"] == "script-unknown-flag"


def test_files_that_are_no_logs_cannot_be_told(home: Home) -> None:
    binary, empty, cut = (home.directory / name for name in ("core", "empty.log", "cut.gz"))
    binary.write_bytes(bytes(range(256)) * 500)
    empty.write_bytes(b"")
    cut.write_bytes(gzip.compress(os.urandom(5000) + b"x" * 5000)[:3000])
    done = home.sparkd(
        "doctor", "--log", str(binary), "--log", str(home.directory), "--log", str(home.directory / "none")
    )
    assert done.returncode == 3 and not done.stderr
    lines = done.stdout.splitlines()
    assert "is not a text" in lines[0] and "Is a directory" in done.stdout and "No such file" in done.stdout
    assert home.sparkd("doctor", "--log", str(empty)).returncode == 0
    broken = json.loads(home.sparkd("doctor", "--log", str(cut), "--json").stdout)["files"][0]
    assert "broken off" in broken["problem"] or not broken["readable"]


def test_of_a_huge_log_the_end_is_searched(home: Home) -> None:
    from sparkd.cli import doctor_log

    huge = home.directory / "huge.log"
    with huge.open("wb") as file:
        file.truncate(doctor_log.READ_MAX_BYTES * 3)
        file.seek(doctor_log.READ_MAX_BYTES * 3)
        file.write(b"\n" + (FIELD / "unknown-flag.log").read_bytes())
    data, problem = doctor_log._read(str(huge))
    assert len(data) == doctor_log.READ_MAX_BYTES and "only its end" in problem and b"unrecognized arguments" in data


def test_a_log_in_utf_16_is_read(home: Home) -> None:
    log = home.directory / "powershell.log"
    log.write_bytes((FIELD / "unknown-flag.log").read_text().encode("utf-16"))
    assert home.sparkd("doctor", "--log", str(log)).stdout.startswith("script-unknown-flag")
