"""Engine processes: recognised among real ones, owned only with proof, ended in order through pidfds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparkd.host import marks, processes
from sparkd.host.ports import Listener
from sparkd.host.processes import EngineProcess, end, engine_processes, is_engine_proper, kill_now, open_pidfd, owned
from sparkd.model.errors import SparkdError
from sparkd.model.plan import LAUNCH_ID_VARIABLE

WAIT_MAX_S = 20.0

# A top process like vLLM's: `vllm serve`, with a titled child that its own end takes along.
# IGNORED is how many SIGTERMs it does not hear, as a head that is still starting.
VLLM = """\
import os, signal, subprocess, sys, time
title = os.environ["TITLE"]
hide = ["env", "-u", "SPARKD_LAUNCH_ID"] if "HIDDEN" in os.environ else []
trap = "trap '' TERM; " if "DEAF" in os.environ else ""
heard, child = 0, None
def term(*_):
    global heard
    heard += 1
    if child is not None and heard > int(os.environ.get("IGNORED", "0")):
        child.kill()
        child.wait()
        if "LINGERS" not in os.environ:
            sys.exit(130)
signal.signal(signal.SIGTERM, term)  # before the child: who sees that one knows that this one listens
child = subprocess.Popen([*hide, "bash", "-c", f"{trap}exec -a {title} sleep 300"])
if heard > int(os.environ.get("IGNORED", "0")):  # it is seen, and its end asked for, before we know of it
    term()
if "TRACKER" in os.environ:
    tracker = subprocess.Popen([os.environ["TRACKER"]], stdin=subprocess.PIPE)
while True:
    time.sleep(60)
"""


class Lab:
    """Starts processes that look like an engine's, and ends whatever is left of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.launch_id = f"{os.getpid():08x}-1"  # nobody else's, so that tests find their own
        self._groups: list[subprocess.Popen[bytes]] = []
        (directory / "vllm").write_text(VLLM)

    def start(self, *argv: str, launch: bool = True, **variables: str) -> int:
        mark = {LAUNCH_ID_VARIABLE: self.launch_id} if launch else {}
        process = subprocess.Popen(argv, env={**os.environ, **variables, **mark}, start_new_session=True)
        self._groups.append(process)
        return process.pid

    def engine(self, title: str = "VLLM::Worker_TP0", **variables: str) -> list[EngineProcess]:
        """A top process and its titled child, and its tracker where it has one: all seen."""
        wanted = 2 + ("TRACKER" in variables)
        top = self.start(
            sys.executable, str(self.directory / "vllm"), "serve", "/m", "--x", "", TITLE=title, **variables
        )
        return self.see(lambda found: len(found) == wanted and found[0].pid == top and found[1].title.startswith(title))

    def titled(self, title: str, trap: str = "", **variables: str) -> list[EngineProcess]:
        pid = self.start("bash", "-c", f"{trap}exec -a {title} sleep 300", **variables)
        return self.see(lambda found: any(one.pid == pid and one.title.startswith(title) for one in found))

    def see(self, enough: Callable[[list[EngineProcess]], bool]) -> list[EngineProcess]:
        until = time.monotonic() + WAIT_MAX_S
        while time.monotonic() < until:
            found = self.mine()
            if enough(found):
                return found
            time.sleep(0.02)
        raise AssertionError(f"not seen within {WAIT_MAX_S} s: {self.mine()}")

    def mine(self) -> list[EngineProcess]:
        groups = {process.pid for process in self._groups}
        return [one for one in engine_processes() if _group(one.pid) in groups]

    def close(self) -> None:
        for process in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


# --- seeing ---------------------------------------------------------------------------------------


def test_a_launch_is_recognised_whole(lab: Lab) -> None:
    top, worker = lab.engine()
    assert processes.is_top(top) and not processes.is_titled(top) and top.name == "vllm serve"
    assert top.argv[1:] == (str(lab.directory / "vllm"), "serve", "/m", "--x", "")  # the empty argument too
    assert (worker.name, worker.title, worker.ppid) == ("VLLM::Worker_TP0", "VLLM::Worker_TP0", top.pid)
    assert {top.launch_id, worker.launch_id} == {lab.launch_id}
    assert is_engine_proper(top) and is_engine_proper(worker)
    assert processes.command_line(top.pid) == top.argv
    assert processes.launch_environment(top.pid)[LAUNCH_ID_VARIABLE] == lab.launch_id


def test_a_title_that_overwrote_its_environment_has_its_parents_launch(lab: Lab) -> None:
    """What setproctitle does to /proc/PID/environ without SPT_NOENV, measured with 1.3.8."""
    top, worker = lab.engine(HIDDEN="1")
    assert LAUNCH_ID_VARIABLE not in processes.launch_environment(worker.pid)
    assert worker.launch_id == top.launch_id == lab.launch_id


def test_a_helper_carries_the_launch_but_is_not_the_engine(lab: Lab) -> None:
    pid = lab.start("sleep", "300")
    (helper,) = lab.see(lambda found: [one.pid for one in found if one.comm == "sleep"] == [pid])
    assert helper.launch_id == lab.launch_id and not is_engine_proper(helper) and helper.name == "sleep"


def test_foreign_ids_are_not_ours(lab: Lab) -> None:
    """A process that carries something else under our variable's name was not started by sparkd."""
    lab.start("sleep", "300", launch=False, **{LAUNCH_ID_VARIABLE: "something"})
    (other,) = lab.titled("VLLM::EngineCore", launch=False)
    assert other.launch_id is None and other.title == "VLLM::EngineCore"


def test_the_dead_are_not_listed(lab: Lab) -> None:
    top, worker = lab.engine()
    os.kill(worker.pid, signal.SIGKILL)  # its parent does not collect it: a zombie
    assert lab.see(lambda found: len(found) == 1)[0].pid == top.pid
    with pytest.raises(SparkdError, match="is gone"):
        processes.launch_environment(2**22 + 1)


def test_a_process_table(tmp_path: Path) -> None:
    """Kernel threads, a worker in a container, names with brackets: a /proc written by hand."""
    container = "0f" * 32
    _entry(tmp_path, 2, comm="kthreadd", cmdline=b"", environ=b"")
    _entry(tmp_path, 40, comm="VLLM::Worker_TP", cmdline=b"python3\0w.py\0", cgroup=f"12:pids:/docker/{container}\n")
    _entry(tmp_path, 41, comm=") Z 1 (", cmdline=b"x\0", environ=b"A=1\0SPARKD_LAUNCH_ID=ab12cd34-17\0B=2\0")
    _entry(
        tmp_path, 42, comm="vllm", cmdline=b"vllm\0serve\0m\0", cgroup=f"0::/system.slice/docker-{container}.scope\n"
    )
    found = {one.pid: one for one in engine_processes(tmp_path)}
    assert set(found) == {40, 41, 42}
    assert found[40].name == "VLLM::Worker_TP" and found[40].container_id == found[42].container_id == container
    assert (found[41].launch_id, found[41].ppid, found[41].start_ticks) == ("ab12cd34-17", 7, 4141)


def _entry(proc: Path, pid: int, *, comm: str, cmdline: bytes, environ: bytes = b"", cgroup: str = "0::/\n") -> None:
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "stat").write_text(f"{pid} ({comm}) S 7 " + "0 " * 17 + f"{pid}{pid} 0 0\n")
    (directory / "status").write_text("Name:\tx\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n")
    (directory / "cmdline").write_bytes(cmdline)
    (directory / "environ").write_bytes(environ)
    (directory / "cgroup").write_text(cgroup)


@pytest.mark.parametrize(
    ("line", "is_it"),
    [
        ("vllm serve /m", True),
        ("/usr/local/bin/vllm serve /m", True),
        ("/usr/bin/python3 /usr/local/bin/vllm serve /m", True),
        ("python3.12 -u -X dev=1 /opt/venv/bin/vllm serve /m", False),  # an option with a value: rather not than wrong
        ("python3 -u /opt/venv/bin/vllm serve /m", True),
        ("python3 -m vllm.entrypoints.openai.api_server --model /m", True),
        ("vllm bench serve", False),
        ("docker exec vllm_ds4 vllm serve /m", False),
        ("bash /workspace/vllm serve", False),
        ("grep -r vllm serve", False),
        ("vllm", False),
        ("python3", False),
    ],
)
def test_what_a_serve_command_is(line: str, is_it: bool) -> None:
    assert marks.is_serve_command(line.split()) is is_it


def test_the_container_of_a_process_is_the_innermost() -> None:
    outer, inner = "a" * 64, "b" * 64
    assert marks.container_id(f"1:name=systemd:/docker/{outer}/docker/{inner}\n".encode()) == inner
    assert marks.container_id(b"0::/user.slice/session-1.scope\n") is None


# --- ownership ------------------------------------------------------------------------------------


def _process(**changes: object) -> EngineProcess:
    plain = EngineProcess(5, 1, "VLLM::Worker_TP", "VLLM::Worker_TP0", ("VLLM::Worker_TP0",), None, None, 1)
    return replace(plain, **changes)  # type: ignore[arg-type]


FORGED = """
import ctypes, os, sys, time
if sys.argv[1] != "root":
    os.setgroups([])
    os.setgid(65534)
    os.setresuid(65534, int(sys.argv[1]), int(sys.argv[1]))  # real, effective, saved: 0 is how a setuid program runs
ctypes.CDLL(None).prctl(15, b"VLLM::Worker_TP", 0, 0, 0)
time.sleep(300)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("effective", ["65534", "0"], ids=["another user's", "a setuid program of another user's"])
def test_what_another_user_says_of_his_process_proves_nothing(lab: Lab, effective: str) -> None:
    forged = lab.start(sys.executable, "-c", FORGED, effective)
    genuine = lab.start(sys.executable, "-c", FORGED, "root")
    until = time.monotonic() + WAIT_MAX_S
    while time.monotonic() < until:
        found = {one.pid: one for one in engine_processes() if one.pid in (forged, genuine)}
        if all(pid in found and found[pid].comm.startswith("VLLM::") for pid in (forged, genuine)):
            break
        time.sleep(0.02)
    assert found[genuine].launch_id == lab.launch_id
    theirs = found[forged]
    assert (theirs.launch_id, theirs.uid, theirs.is_credible) == (None, 65534, False)
    boot = lab.launch_id.partition("-")[0]
    ports = [Listener(29501, "0.0.0.0", 1, (forged, genuine), ("a", "b"))]
    stale, others = processes.told_apart(
        found.values(), living_launch=None, container_ids=(), our_ports=[29501], listeners=ports, boot=boot
    )
    assert [one.pid for one, _ in stale] == [genuine]
    assert [one.pid for one in others] == [forged]


def test_a_child_of_the_engine_that_became_another_users_inherits_no_launch() -> None:
    top = EngineProcess(10, 1, "vllm", "vllm serve", ("vllm", "serve"), "0badcafe-1", None, 1)
    child = EngineProcess(11, 2, "VLLM::Worker_TP", "VLLM::Worker_TP0", ("VLLM::Worker_TP0",), None, None, 10)
    known = {10: top, 11: child}
    assert processes._with_inherited_launch(child, known).launch_id == "0badcafe-1"
    assert processes._with_inherited_launch(replace(child, uid=1000), known).launch_id is None


def test_a_group_that_a_user_named_like_a_container_is_none() -> None:
    id = b"ab" * 32
    assert marks.container_id(b"0::/system.slice/docker-%s.scope\n" % id) == id.decode()
    assert marks.container_id(b"0::/user.slice/user-1000.slice/user@1000.service/docker-%s.scope\n" % id) is None
    assert (
        marks.container_id(b"4:memory:/\n1:name=systemd:/user.slice/user-7.slice/user@7.service/docker/%s\n" % id)
        is None
    )


def test_ownership_is_proven_or_absent() -> None:
    holds = [Listener(29501, "0.0.0.0", 9, (5,), ("VLLM::Worker_TP0",))]

    def why(process: EngineProcess, listeners: list[Listener]) -> str | None:
        ours = {"c" * 64: "vllm_ds4"}
        return owned(process, container_ids=ours, our_ports=(8000, 29501), listeners=listeners, boot="ab12cd34")

    assert why(_process(launch_id="ab12cd34-17"), []) == "carries SPARKD_LAUNCH_ID ab12cd34-17"
    assert why(_process(container_id="c" * 64), []) == "lives in our container vllm_ds4"
    assert why(_process(), holds) == "is VLLM::Worker_TP0 and holds our port 29501"
    # a name alone, somebody else's container, another's port, and something that is no engine: all not ours
    assert why(_process(), []) is None
    assert why(_process(container_id="d" * 64), []) is None
    assert why(_process(), [replace(holds[0], port=29502)]) is None
    assert why(_process(container_id="d" * 64), holds) is None, "another's container may have the port before us"
    assert why(_process(launch_id="00c0ffee-17"), []) is None, "of another boot: a sparkd in a container of this host"
    assert why(_process(pid=6), holds) is None
    assert why(_process(title="nginx", comm="nginx", argv=("nginx",)), holds) is None


# --- ending ---------------------------------------------------------------------------------------


def test_the_top_process_is_asked_and_takes_its_children_along(lab: Lab) -> None:
    found = lab.engine()
    ended = end(found, grace_s=WAIT_MAX_S)
    assert ended.terminated == tuple(one.pid for one in found)
    assert (ended.killed, ended.survivors, lab.mine()) == ((), (), [])


def test_a_head_that_does_not_hear_the_first_signal_is_asked_again(lab: Lab) -> None:
    found = lab.engine(IGNORED="1")
    ended = end(found, grace_s=WAIT_MAX_S, again_s=0.2)
    assert set(ended.terminated) == {one.pid for one in found} and not ended.killed


def test_what_does_not_go_is_killed(lab: Lab) -> None:
    found = lab.engine(IGNORED="99", DEAF="1")
    turns: list[int] = []
    ended = end(found, grace_s=0.6, again_s=0.2, poll=lambda: turns.append(1))
    assert set(ended.killed) == {one.pid for one in found} and not ended.survivors
    assert turns and lab.mine() == []


def test_a_head_that_waits_for_its_clients_does_not_hold_up_the_end(lab: Lab) -> None:
    """vLLM's, asked to stop with requests in flight: the engine is gone, the server waits for connections to close."""
    top, worker = lab.engine(LINGERS="1")
    ended = end([top, worker], grace_s=WAIT_MAX_S * 10, again_s=0.2)
    assert (ended.terminated, ended.killed) == ((worker.pid,), (top.pid,))


def test_a_tracker_may_clear_up_after_a_killed_engine(lab: Lab) -> None:
    """Python's resource tracker reads from a pipe that its program holds, and goes at the end of that."""
    found = lab.engine(IGNORED="99", DEAF="1", TRACKER="cat")
    tracker = next(one for one in found if one.comm == "cat")
    ended = end(found, grace_s=0.4, again_s=0.2)
    assert ended.terminated == (tracker.pid,)
    assert set(ended.killed) == {one.pid for one in found if one is not tracker}


def test_orphans_are_all_asked_and_then_killed(lab: Lab) -> None:
    lab.titled("VLLM::EngineCore")
    found = lab.titled("VLLM::Worker_TP0", trap="trap '' TERM; ")
    core, worker = sorted(found, key=lambda one: one.title)
    ended = end(found, grace_s=0.5)
    assert (ended.terminated, ended.killed) == ((core.pid,), (worker.pid,))


def test_a_helper_that_outlives_its_engine_does_not_hold_up_the_end(lab: Lab) -> None:
    top, worker = lab.engine()
    helper = lab.start("sleep", "300")
    found = lab.see(lambda found: helper in {one.pid for one in found if one.comm == "sleep"})
    ended = end(found, grace_s=1.5)
    assert set(ended.terminated) == {top.pid, worker.pid} and ended.killed == (helper,)


def test_a_recycled_number_is_not_hit(lab: Lab) -> None:
    found = lab.engine()
    others = [replace(one, start_ticks=one.start_ticks - 1) for one in found]
    assert open_pidfd(others[0]) is None
    ended = end(others, grace_s=0.5)
    assert set(ended.terminated) == {one.pid for one in others}  # those processes are gone, and these live
    assert {one.pid for one in lab.mine()} == {one.pid for one in found}


def test_kill_now(lab: Lab) -> None:
    found = lab.engine(IGNORED="99")
    assert set(kill_now(found).killed) == {one.pid for one in found}
    assert kill_now(found).terminated == tuple(one.pid for one in found)
