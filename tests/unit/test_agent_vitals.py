"""A node's part of the engine seen from outside: real processes, files as the kernel has them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparkd.agent.vitals import Look, VitalSigns, is_compiler, look, vitals
from sparkd.host.processes import EngineProcess, engine_processes
from sparkd.host.samples import Gpu
from sparkd.host.traffic import link_bytes
from sparkd.model.plan import LAUNCH_ID_VARIABLE
from sparkd.model.report import Vitals

WAIT_MAX_S = 20.0
BURN = "while True: pass"
HELD = {"has_gpu": False, "heard": None, "ticks_per_s": 100}


class Engine:
    """Processes that carry a launch id of their own, under titles that they are given."""

    def __init__(self, directory: Path) -> None:
        self.launch_id = f"{os.getpid():08x}-7"
        self._directory = directory
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, title: str, code: str) -> subprocess.Popen[bytes]:
        """Under its own comm as well: a script's is that of its file."""
        program = self._directory / title.partition("::")[2] if "::" in title else self._directory / title
        program.write_text(f"#!{sys.executable}\n{code}\n")
        program.chmod(0o755)
        environment = {**os.environ, LAUNCH_ID_VARIABLE: self.launch_id}
        command = ["bash", "-c", f'exec -a "{title}" {sys.executable} -c "{code}"'] if "::" in title else [str(program)]
        process = subprocess.Popen(command, env=environment)
        self.started.append(process)
        return process

    def found(self) -> list[EngineProcess]:
        return [process for process in engine_processes() if process.launch_id == self.launch_id]

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait(WAIT_MAX_S)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path)
    yield made
    made.end()


def until(ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_MAX_S
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_rank_that_burns_one_that_waits_and_one_that_is_stopped(engine: Engine) -> None:
    waits = engine.start("VLLM::Worker_TP0", "import time; time.sleep(600)")
    burns = engine.start("VLLM::Worker_TP1", BURN)
    until(lambda: len(engine.found()) == 2)
    before = look(engine.found(), "lo", 100.0)
    until(lambda: sum(look(engine.found(), "lo", 0).titled.values()) > sum(before.titled.values()) + 5)
    told = vitals(before, look(engine.found(), "lo", 101.0), **HELD)  # type: ignore[arg-type]
    assert told.cpu_percent is not None and told.cpu_percent > 4
    assert (told.processes, told.stopped, told.compiling, told.gpu) == (2, "", "", False)
    burns.kill()
    burns.wait(WAIT_MAX_S)
    waits.send_signal(signal.SIGSTOP)
    until(lambda: look(engine.found(), "lo", 0).stopped == "VLLM::Worker_TP0")
    assert vitals(before, look(engine.found(), "lo", 102.0), **HELD).processes == 1  # type: ignore[arg-type]


def test_a_compiler_counts_while_it_burns(engine: Engine) -> None:
    engine.start("VLLM::Worker_TP1", "import time; time.sleep(600)")
    compiler = engine.start("ptxas", BURN)
    until(lambda: any(is_compiler(process) for process in engine.found()))
    before = look(engine.found(), "lo", 100.0)
    until(lambda: look(engine.found(), "lo", 0).compilers != before.compilers)
    told = vitals(before, look(engine.found(), "lo", 110.0), **HELD)  # type: ignore[arg-type]
    assert told.compiling == "ptxas"
    compiler.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    before = look(engine.found(), "lo", 120.0)
    assert vitals(before, look(engine.found(), "lo", 130.0), **HELD).compiling == ""  # type: ignore[arg-type]


def test_one_look_alone_tells_no_rates() -> None:
    told = vitals(None, Look(1.0, {(1, 1): 50}, {}, {}, "", 5), has_gpu=True, heard=None, ticks_per_s=100)
    assert told == Vitals(processes=1, stopped="", gpu=True)


def test_a_compiler_that_came_in_between_counts_with_what_it_took() -> None:
    after = Look(11.0, {}, {(7, 9): 3}, {(7, 9): "cicc"}, "", 1 << 20)
    told = vitals(Look(1.0, link_bytes=0), after, has_gpu=True, heard=Gpu(60, 45.5, 96.0, 2400), ticks_per_s=100)
    assert (told.compiling, told.link_bytes_s, told.gpu_watts, told.gpu_percent) == ("cicc", 104857, 45.5, 96.0)


def test_a_pool_of_compile_workers_counts_as_a_compiler() -> None:
    argv = ("python3", "/x/torch/_inductor/compile_worker/__main__.py", "--workers=32")
    made = EngineProcess(1, 1, "python3", " ".join(argv), argv, "b-1", None, 0)
    assert is_compiler(made)
    assert not is_compiler(
        EngineProcess(1, 1, "VLLM::Worker_TP", "VLLM::Worker_TP0", ("VLLM::Worker_TP0",), "b-1", None, 0)
    )


def test_the_gpu_counts_only_where_it_was_read_after_the_doubt_began() -> None:
    read: list[tuple[Gpu, float]] = [(Gpu(60, 45.0, 96.0, 2400), time.monotonic())]
    signs = VitalSigns("no-such-launch", "lo", lambda: read[-1])
    assert signs.take().gpu_watts is None
    read.append((Gpu(60, 21.0, 95.0, 2400), time.monotonic()))
    again = signs.take()
    assert (again.gpu_watts, again.processes) == (21.0, 0)
    assert again.cpu_percent == 0.0 and again.compiling == "" and again.link_bytes_s is not None
    signs.forget()
    assert signs.take().gpu_watts is None


def test_bytes_of_rdma_and_of_the_interface_add_up(tmp_path: Path) -> None:
    ports = [tmp_path / "ib" / name / "ports" / "1" / "counters" for name in ("rocep1s0f0", "roceP2p1s0f0")]
    for port in ports:
        port.mkdir(parents=True)
        (port / "port_xmit_data").write_text("1000\n")
        (port / "port_rcv_data").write_text("500\n")
    statistics = tmp_path / "net/bond0/statistics"
    statistics.mkdir(parents=True)
    (statistics / "tx_bytes").write_text("7\n")
    (statistics / "rx_bytes").write_text("9\n")
    assert link_bytes("bond0", infiniband=tmp_path / "ib", net=tmp_path / "net") == 4 * 3000 + 16
    assert link_bytes("eth9", infiniband=tmp_path / "ib", net=tmp_path / "net") == 4 * 3000
    assert link_bytes("bond0", infiniband=tmp_path / "none", net=tmp_path / "net") == 16
    assert link_bytes("eth9", infiniband=tmp_path / "none", net=tmp_path / "net") is None
