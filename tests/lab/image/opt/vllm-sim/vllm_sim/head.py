"""The head's top process after its arguments are accepted: the engine core's parent and the API server's home."""

import math
import os
import select
import signal
import socket
import threading
from typing import Any

from vllm_sim import engine, faults, knobs, log, processes, traces
from vllm_sim.api import ApiServer
from vllm_sim.channel import Channel, Closed
from vllm_sim.client import ENGINE_DEAD, EngineClient
from vllm_sim.config import EngineConfig, Refused

INTERRUPTED = 130
CORE_FAILED = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"

# Measured: how long each way to go takes, from its cause to the end of the process.
GRACE_S = 5.0
KILLED_AT_START_S = 1.7
READY_STOP_S = 0.3
DEATH_NOTICED_S = 0.1
DEATH_S = 0.15
CORE_LOST_S = 2.0


class Head:
    def __init__(self, config: EngineConfig, sock: socket.socket, signals: processes.SignalPipe) -> None:
        self.config, self.sock, self.signals = config, sock, signals
        self.channel, theirs = Channel.pair()
        self.worker_pids: list[int] = []
        self.core_pid = processes.fork(lambda: engine.run(config, theirs, [self.channel, sock]))
        self.core_pidfd = os.pidfd_open(self.core_pid)
        theirs.close()

    def wait_started(self) -> int | None:
        """Until the engine is ready; an exit status when it never will be. Raises Refused."""
        asked_to_stop = 0
        while True:
            for source in _ready(self.channel, self.core_pidfd, self.signals):
                if source is self.signals:
                    asked_to_stop += sum(1 if number == signal.SIGTERM else 2 for number in self.signals.take())
                    if asked_to_stop >= 2:  # the first SIGTERM during a start is lost, 4 times of 4
                        return self._stop_starting()
                elif source == self.core_pidfd:
                    self._refuse_without_core()
                else:
                    message = self._receive()
                    self.worker_pids = message.get("workers", self.worker_pids)
                    if "started" in message:
                        return None

    def _receive(self) -> dict[str, list[int]]:
        try:
            return dict(self.channel.receive())
        except Closed:
            select.select([self.core_pidfd], [], [], 1.0)
            return self._refuse_without_core()

    def _refuse_without_core(self) -> dict[str, list[int]]:
        processes.exit_code(self.core_pid)
        for pid in self.worker_pids:
            processes.kill(pid, signal.SIGKILL)
        knobs.pause("failed_core")
        raise Refused(traces.CORE_CLIENT, CORE_FAILED)

    def _stop_starting(self) -> int:
        log.info("utils.py:628", "[shutdown] Process manager: send sigterm to process EngineCore")
        knobs.stop_pause(GRACE_S)
        self._force_kill()
        knobs.stop_pause(KILLED_AT_START_S)
        return INTERRUPTED

    def serve(self) -> int:
        """From ready to the end. Always 0, whatever the end was."""
        knobs.pause("api")
        client = EngineClient(self.channel)
        lost, lost_writer = os.pipe()
        threading.Thread(target=_read_until_lost, args=(client, lost_writer), daemon=True).start()
        server = ApiServer(self.config, self.sock, client)
        server.start()
        ready = _ready(lost, self.core_pidfd, self.signals)
        while self.signals in ready and faults.on("ignore-sigterm"):
            self.signals.take()
            ready = _ready(lost, self.core_pidfd, self.signals)
        if self.signals in ready:
            self._stop_ready(server)
        else:
            self._end_without_engine(server, client)
        return 0

    def _stop_ready(self, server: ApiServer) -> None:
        log.info("launcher.py:254", "[shutdown] API server: shutdown triggered")
        log.info("launcher.py:270", "[shutdown] API server: stopping engine client mode=abort timeout=0s")
        self._stop_engine()
        server.stop(max_s=math.inf)  # 6 of 8 with requests in flight: nobody answers these any more
        knobs.stop_pause(READY_STOP_S)

    def _end_without_engine(self, server: ApiServer, client: EngineClient) -> None:
        if client.said_dead:
            _complain()
            knobs.stop_pause(DEATH_NOTICED_S)
        else:
            client.fail()
            log.error("core_client.py:744", "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup")
            if client.in_flight:
                _complain()
            knobs.stop_pause(CORE_LOST_S)
        server.stop()
        self._stop_engine()
        knobs.stop_pause(DEATH_S)

    def _stop_engine(self) -> None:
        where = "core_client.py"
        log.info(f"{where}:770", "[shutdown] MPClient: start timeout=0s")
        log.info(f"{where}:772", "[shutdown] MPClient: stopping engine manager")
        log.info("utils.py:628", "[shutdown] Process manager: send sigterm to process EngineCore")
        self._force_kill()
        log.info(f"{where}:774", "[shutdown] MPClient: engine manager stopped")
        log.info(f"{where}:775", "[shutdown] MPClient: cleaning up background resources")
        log.info(f"{where}:777", "[shutdown] MPClient: complete")

    def _force_kill(self) -> None:
        if not processes.wait_gone(self.core_pidfd, 0):
            log.warning("utils.py:648", "[shutdown] Process manager: force killing remaining processes count=1")
            said = f"force killing remaining process EngineCore pid {self.core_pid}"
            log.warning("utils.py:653", f"[shutdown] Process manager: {said}")
            processes.kill(self.core_pid, signal.SIGKILL)
        processes.exit_code(self.core_pid)
        for rank, pid in enumerate(self.worker_pids):
            title = f"VLLM::{self.config.worker_name(self.config.local_ranks[rank])}"
            log.warning("system_utils.py:225", f"[shutdown] force killing sub process {title} pid {pid}")
            processes.kill(pid, signal.SIGKILL)


def _ready(*sources: Any) -> list[Any]:
    return select.select(sources, [], [])[0]


def _read_until_lost(client: EngineClient, lost_writer: int) -> None:
    client.read_outputs()
    os.write(lost_writer, b"x")


def _complain() -> None:
    error = f"vllm.v1.engine.exceptions.EngineDeadError: {ENGINE_DEAD}"
    log.error("async_llm.py:906", "AsyncLLM output_handler failed.")
    log.error("async_llm.py:906", log.trace(traces.OUTPUT_HANDLER, error))
