"""The ranks of one node, as their parent holds them: started, watched through pidfds, stopped in vLLM's own slow way."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_sim import log, processes
from vllm_sim.channel import Channel
from vllm_sim.config import EngineConfig
from vllm_sim.knobs import knob
from vllm_sim.worker import Worker

GRACE_S = 5.0  # unless VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS says otherwise
TERMINATE_S = 4.0
REAP_S = 2.0


@dataclass
class Rank:
    number: int
    channel: Channel
    pid: int | None = None  # None: a thread of this process
    pidfd: int | None = None


class Executor:
    def __init__(self, config: EngineConfig, inherited: Iterable[Channel | socket.socket] = ()) -> None:
        """`inherited`: what a rank must not keep open, or nobody would notice this process's end."""
        address = (config.master_addr, config.master_port)
        if config.nnodes == 1:
            address = ("127.0.0.1", _free_port())
        self.ranks: list[Rank] = []
        for number in config.local_ranks:
            ours, theirs = Channel.pair()
            worker = Worker(config, number, address, theirs)
            if config.in_process:
                threading.Thread(target=worker.run, args=(False,), daemon=True).start()
                self.ranks.append(Rank(number, ours))
                continue
            close = [*inherited, ours, *(rank.channel for rank in self.ranks)]
            pid = processes.fork(lambda worker=worker, close=close: _run(worker, close))  # type: ignore[misc]
            theirs.close()
            self.ranks.append(Rank(number, ours, pid, os.pidfd_open(pid)))

    @property
    def pids(self) -> list[int]:
        return [rank.pid for rank in self.ranks if rank.pid is not None]

    def sources(self) -> "dict[Channel | int, Rank]":
        """What to select on: each rank's channel, and its pidfd that says that it ended."""
        found: dict[Channel | int, Rank] = {rank.channel: rank for rank in self.ranks if rank.channel.fileno() >= 0}
        found.update({rank.pidfd: rank for rank in self.ranks if rank.pidfd is not None})
        return found

    def obituary(self, rank: Rank) -> None:
        """Reaps a rank that ended and says so as vLLM does."""
        code = processes.exit_code(rank.pid) if rank.pid else None
        self._forget(rank)
        log.error(
            "multiproc_executor.py:315",
            f"Worker proc VllmWorker-{rank.number} died unexpectedly (exit code: {code}), shutting down executor.",
        )

    def _forget(self, rank: Rank) -> None:
        if rank.pidfd is not None:
            os.close(rank.pidfd)
        rank.channel.close()
        self.ranks.remove(rank)

    def shut_down(self) -> None:
        """Grace, SIGTERM, SIGKILL: 11 s, because the ranks never go by themselves."""
        for rank in self.ranks:
            rank.channel.close()
        alive = [rank for rank in self.ranks if rank.pidfd is not None]
        if not alive:
            return
        scale = knob("stop_scale", 1.0)
        log.info("multiproc_executor.py:479", f"[shutdown] Executor: waiting for worker exit count={len(alive)}")
        grace_s = float(os.environ.get("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", GRACE_S))
        alive = _still_alive(alive, grace_s * scale)
        if not alive:
            log.info("multiproc_executor.py:486", "[shutdown] Executor: all workers exited gracefully")
        for number, then_s in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, REAP_S)):
            if not alive:
                break
            said = "still running after grace period; " if number == signal.SIGTERM else ""
            log.warning(
                "multiproc_executor.py:492",
                f"[shutdown] Executor: workers {said}sending {number.name} count={len(alive)}",
            )
            for rank in alive:
                processes.kill(rank.pid or 0, number)
            alive = _still_alive(alive, then_s * scale)
            if number == signal.SIGKILL:
                time.sleep(REAP_S * scale)
        for rank in list(self.ranks):
            if rank.pid:
                processes.exit_code(rank.pid)
            self._forget(rank)


def _run(worker: Worker, close: list[Channel | socket.socket]) -> int:
    processes.default_signals()
    for inherited in close:
        inherited.close()
    return worker.run_as_process()


def _still_alive(ranks: list[Rank], timeout_s: float) -> list[Rank]:
    deadline = time.monotonic() + timeout_s
    return [
        rank
        for rank in ranks
        if rank.pidfd is not None and not processes.wait_gone(rank.pidfd, max(0.0, deadline - time.monotonic()))
    ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
