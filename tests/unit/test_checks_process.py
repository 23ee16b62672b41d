"""Checks of layer process: whose engine processes are, and who holds the ports."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from checks_facts import LAUNCH, asked, container, engine, facts, given, serving, usage, verdicts

from sparkd.doctor import facts as shared
from sparkd.doctor.checks import process
from sparkd.doctor.facts import Facts
from sparkd.host.clock import boot_id_short
from sparkd.host.ports import Listener
from sparkd.host.processes import EngineProcess
from sparkd.host.usage import Usage
from sparkd.model.finding import Who

OTHER = f"{boot_id_short()}-6"  # an earlier launch of this boot


def looked(
    tmp_path: Path,
    *engines: EngineProcess,
    held: tuple[Listener, ...] = (),
    phase: str = "serving",
    everybody: tuple[Usage, ...] = (),
    **plan: object,
) -> Facts:
    here = facts(tmp_path, status=serving(phase=phase), **plan)
    given(here, shared.engine_processes, engines)
    given(here, shared.container, container())
    given(here, process.listeners, held)
    given(here, process.everybody, everybody)
    return here


def listener(port: int, pid: int, name: str) -> Listener:
    return Listener(port=port, address="0.0.0.0", inode=1, pids=(pid,), names=(name,))


def test_the_living_launch_is_no_trouble(tmp_path: Path) -> None:
    here = looked(tmp_path, engine(10, "VLLM::EngineCore"), engine(11))
    assert asked(process.stale, here).says == "2 engine processes, all of the living launch"
    assert verdicts(process.foreign, here) == ["good"]


def test_a_process_of_an_earlier_launch_is_stale_and_named(tmp_path: Path) -> None:
    found = asked(process.stale, looked(tmp_path, engine(10), engine(11, launch_id=OTHER)))
    assert found.is_bad and found.who is Who.SPARKD
    assert found.says == f"VLLM::Worker_TP0 (pid 11) is of no living launch: it carries SPARKD_LAUNCH_ID {OTHER}"


def test_between_two_launches_it_is_only_a_trace_and_while_it_is_ended_no_news(tmp_path: Path) -> None:
    old = engine(11, launch_id=OTHER)
    assert verdicts(process.stale, looked(tmp_path, old, phase="backoff")) == ["warning"]
    assert verdicts(process.stale, looked(tmp_path, old, phase="clean")) == []


def test_helpers_alone_are_no_engine(tmp_path: Path) -> None:
    tracker = engine(12, "python3", launch_id=OTHER)
    assert verdicts(process.stale, looked(tmp_path, tracker)) == ["good"]


def test_an_engine_of_somebody_else_is_a_warning_and_bad_where_it_leaves_too_little(tmp_path: Path) -> None:
    theirs = engine(20, "vllm serve", argv=("vllm", "serve", "/m"), launch_id=None, container_id="f" * 64)
    here = looked(tmp_path, theirs, everybody=(usage(20, "vllm", rss_bytes=41 << 30),), gpu_memory_utilization=0.0)
    found = asked(process.foreign, here)
    assert (found.verdict.value, found.says) == ("warning", "vllm serve (pid 20) is not ours: 41.0 GiB resident")
    assert verdicts(process.stale, here) == ["good"]
    assert verdicts(process.foreign, looked(tmp_path, theirs, gpu_memory_utilization=9.0)) == ["bad"]


def test_without_docker_a_process_in_a_container_is_nobodys_for_certain(tmp_path: Path) -> None:
    here = looked(tmp_path, engine(20, launch_id=None))
    here._facts.pop((shared.container.__wrapped__,))  # type: ignore[attr-defined]
    found = asked(process.stale, here)
    assert (found.verdict.value, verdicts(process.foreign, here)) == ("unknown", [])
    assert "Docker does not tell" in found.says
    assert process.engine_here(here)


def test_without_root_nobody_knows_whose_a_process_is() -> None:
    theirs = engine(20, launch_id=None, container_id=None)
    judged = process.judge([theirs], launch=LAUNCH, ours=(), asked=True, blind=True, fixed=(), held=(), boot="")
    assert judged.undecided == (theirs,) and not judged.foreign


def test_a_foreign_holder_of_a_port_is_named(tmp_path: Path) -> None:
    found = asked(process.taken, looked(tmp_path, engine(10), held=(listener(8000, 812, "nginx"),)))
    assert found.is_bad and found.says == "port 8000 is held by nginx (pid 812)" and "sport = :8000" in found.remedy


def test_ports_of_the_living_engine_and_of_a_worker_are_fine(tmp_path: Path) -> None:
    held = (listener(8000, 10, "vllm"), listener(29501, 11, "VLLM::Worker_TP0"))
    assert "held by the living engine" in asked(process.taken, looked(tmp_path, engine(10), engine(11), held=held)).says
    here = facts(tmp_path, rank=1, status=serving())
    assert verdicts(process.taken, here) == []  # a worker binds no fixed port


def test_a_port_of_a_stale_process_is_that_processs_news(tmp_path: Path) -> None:
    judged = process.Owned(((engine(11, launch_id=OTHER), "holds our port 29501"),), (), ())
    assert process.intruders((8000, 29501), [listener(29501, 11, "VLLM::Worker_TP0")], (), judged) == []


def test_a_bound_port_that_does_not_listen_is_seen(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        here = looked(tmp_path, phase="blocked", api_port=port, size=1)
        assert asked(process.taken, here).says == f"port {port} is held by a socket that does not listen"


def test_sparkd_and_the_engine_on_one_port(tmp_path: Path) -> None:
    assert asked(process.conflict, looked(tmp_path, api_port=7420)).says == "sparkd and the engine both want port 7420"
    assert verdicts(process.conflict, looked(tmp_path)) == ["good"]


def test_a_killed_process_that_hangs_in_the_kernel(tmp_path: Path) -> None:
    hung = usage(4711, state="D", kill_pending=True)
    found = asked(process.unkillable, looked(tmp_path, everybody=(hung,)))
    assert found.is_bad and found.says == "VLLM::Worker_TP (pid 4711) was sent SIGKILL and hangs in the kernel"
    reading = usage(4711, state="D")  # reads weights from a disk
    assert verdicts(process.unkillable, looked(tmp_path, everybody=(reading,))) == ["good"]


def test_zombies_that_a_container_without_init_keeps(tmp_path: Path) -> None:
    sleep, dead = usage(211, "sleep"), usage(300, state="Z", ppid=211)
    found = asked(process.zombies, looked(tmp_path, everybody=(sleep, dead)))
    assert found.says == "1 dead VLLM::Worker_TP are kept by sleep (pid 211), which does not reap"
    passing = (usage(212, "VLLM::EngineCor"), usage(300, state="Z", ppid=212))
    assert verdicts(process.zombies, looked(tmp_path, everybody=passing)) == ["good"]


def test_rdma_is_expected_where_the_recipe_leaves_it_on(tmp_path: Path) -> None:
    plan = facts(tmp_path).plan
    assert process.uses_rdma(plan)
    assert not process.uses_rdma(plan.model_copy(update={"environment": {"NCCL_IB_DISABLE": "1"}}))
    assert not process.uses_rdma(facts(tmp_path, gpus=None).plan)


def test_limits_of_a_real_process_are_read(tmp_path: Path) -> None:
    here = looked(tmp_path, engine(os.getpid()))
    assert verdicts(process.files, here) in (["good"], ["warning"])
    assert len(verdicts(process.memlock, here)) == 1
    assert verdicts(process.memlock, looked(tmp_path, engine(os.getpid()), gpus=None)) == []


def test_too_few_open_files_are_told(tmp_path: Path) -> None:
    child = subprocess.Popen(["bash", "-c", "ulimit -n 1024 && echo ready && exec sleep 30"], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        found = asked(process.files, looked(tmp_path, engine(child.pid)))
        assert found.verdict.value == "warning" and "may open 1024 files" in found.says
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
