"""One rank: VllmWorker-N at first, Worker_TP0 once it knows its place.

It reports to its parent (engine core, or the headless top) by messages: loaded, ready, failed; then rank 0 answers each
step, after a collective with every other rank. It never exits by itself: not when its parent goes, not when a peer goes.
"""

import select
import signal
import subprocess
import sys
import time
from typing import Any

from vllm_sim import faults, knobs, loading, log, processes, rendezvous, shm, traces
from vllm_sim.channel import Channel, Closed
from vllm_sim.config import EngineConfig
from vllm_sim.mishaps import CUDA_ERROR, StartFailure, short_of_memory
from vllm_sim.rendezvous import Group, PeerLost

SLOW_TOKENS_FACTOR = 50
LAYER_BYTES = (
    512 << 10
)  # what the ranks exchange in each part of a long step: megabytes a second, as tensor parallel work is
COMPILE_S = 30.0  # of a first shape, by the knob compile_s
COMPILER = (
    "import os,sys,time; os.nice(10); open('/proc/self/comm','w').write('cicc'); end=time.time()+float(sys.argv[1])\n"
)
COMPILER += "while time.time() < end: pass"


class Worker:
    def __init__(self, config: EngineConfig, rank: int, address: tuple[str, int], parent: Channel) -> None:
        self.config, self.rank, self.address, self.parent = config, rank, address, parent
        self.group = Group()
        self.name = config.worker_name(rank)

    def run_as_process(self) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # measured: a rank does not go for 9 s of SIGTERM
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        processes.set_title("VLLM::Worker")
        log.set_process(f"VllmWorker-{self.rank}")
        segments = shm.Segments(rings=2)
        status = self.run(titled=True)
        segments.unlink()
        return status

    def run(self, titled: bool) -> int:
        """`titled`: a process of its own, with its own name in the log. Otherwise the engine core speaks."""
        try:
            self._start(titled)
        except StartFailure as failure:
            log.error("multiproc_executor.py:953", "WorkerProc failed to start.")
            log.error("multiproc_executor.py:953", log.trace(failure.frames, failure.text))
            self._report({"failed": failure.text})
            return 1
        self._serve()
        return 0

    def _report(self, message: Any) -> None:
        try:
            self.parent.send(message)
        except Closed:
            return

    def _start(self, titled: bool) -> None:
        knobs.pause("worker_imports")
        config = self.config
        if faults.on("oom-at-start"):
            raise StartFailure(traces.REQUEST_MEMORY, short_of_memory(config))
        if titled:
            log.set_process("Worker")
        method = f"tcp://{self.address[0]}:{self.address[1]}"
        log.info(
            "parallel_state.py:1906",
            f"world_size={config.world_size} rank={self.rank} local_rank={self.rank - config.local_ranks[0]} "
            f"distributed_init_method={method} backend={config.backend}",
        )
        if faults.on("eaddrinuse-at-start") and self.rank == 0:
            raise StartFailure(traces.RENDEZVOUS, rendezvous.address_in_use(self.address[1]))
        try:
            self.group = rendezvous.join(config, self.rank, self.address)
        except rendezvous.RendezvousFailed as exc:
            raise StartFailure(traces.RENDEZVOUS, str(exc)) from exc
        tensor, expert = self.rank % config.tensor_parallel, "N/A"
        if config.expert_parallel:
            expert = str(tensor)
        log.info(
            "parallel_state.py:2350",
            f"rank {self.rank} in world size {config.world_size} is assigned as DP rank 0, PP rank "
            f"{self.rank // config.tensor_parallel}, PCP rank 0, TP rank {tensor}, ETP rank {tensor}, EP rank {expert}, "
            "EPLB rank N/A",
        )
        if titled:
            processes.set_title(f"VLLM::{self.name}")
            log.set_process(self.name)
        self._load()

    def _load(self) -> None:
        """Loading, profiling and graph capture, in step with the other ranks."""
        loading.load_weights(self.config, bars=self.rank == 0)
        loading.compile_and_profile(self.config, self.rank)
        self._barrier()
        if not self.config.headless:
            self._report({"loaded": self.rank})
            self._wait_for_parent()
        loading.warm_up(self.config, bars=self.rank == 0)
        self._barrier()
        self._report({"ready": self.rank})

    def _wait_for_parent(self) -> None:
        try:
            self.parent.receive()
        except Closed:
            faults.hang_for_ever()

    def _barrier(self) -> None:
        """A peer that dies during the start leaves everybody waiting, silently and for ever (measured)."""
        try:
            if self.group.leader is not None:
                self.group.leader.receive()
                self.group.leader.send({"barrier": self.rank})
                return
            self.group.ask_all({"barrier": 0})
            self.group.answers()
        except (PeerLost, Closed):
            faults.hang_for_ever()

    def _serve(self) -> None:
        in_flight = False
        sources: list[Channel] = [self.parent]
        if self.group.leader is not None:
            sources.append(self.group.leader)
        while sources:
            ready = [source for source in sources if source.waiting()] or select.select(sources, [], [])[0]
            for source in ready:
                try:
                    message = source.receive()
                    if "step" in message:
                        in_flight = bool(message["more"])
                        source.send(self._step(message))
                except Closed:
                    sources.remove(source)
                    if source is self.parent:
                        log.info("multiproc_executor.py:843", "Parent process exited, terminating worker queues")
                    elif in_flight:
                        self._complain("RuntimeError: NCCL error: remote process exited or there was a network error")
        faults.hang_for_ever()

    def _step(self, message: dict[str, Any]) -> dict[str, Any]:
        """One forward pass of this rank and of those that it leads."""
        try:
            self.group.ask_all(message)
            self._compute(float(message["seconds"]), int(message.get("layers", 0)))
            for answer in self.group.answers():
                if "error" in answer:
                    return dict(answer)
        except PeerLost as exc:
            faults.hang_while("peer-loss-hangs")
            self._complain(f"RuntimeError: {exc}\n")
            return {"error": str(exc)}
        except RuntimeError as exc:
            self._complain(str(exc))
            return {"error": str(exc).removeprefix("torch.AcceleratorError: ")}
        return {"done": message["step"]}

    def _compute(self, seconds: float, layers: int) -> None:
        faults.hang_while("hang-requests")
        if faults.take("compile-next-request"):
            self._compile()
        if faults.take("crash-next-request") or faults.on("crash-every-request"):
            raise RuntimeError(CUDA_ERROR)
        seconds *= SLOW_TOKENS_FACTOR if faults.on("slow-tokens") else 1
        for _ in range(layers):
            time.sleep(seconds / (layers + 1))
            faults.hang_while("hang-requests")
            self._exchange_layer()
        time.sleep(seconds / (layers + 1))

    def _exchange_layer(self) -> None:
        """One way is enough for the bytes; the follower does not get on without the leader's. Raises PeerLost, Closed."""
        if self.group.leader is not None:
            self.group.leader.receive()
        self.group.ask_all({"layer": "x" * LAYER_BYTES})

    def _compile(self) -> None:
        """A kernel for a shape that was not seen before: a compiler burns a CPU below this rank, and nothing else moves."""
        command = ["/usr/local/cuda/nvvm/bin/cicc", "-c", COMPILER, str(knobs.knob("compile_s", COMPILE_S))]
        subprocess.run(command, executable=sys.executable, check=False)

    def _complain(self, text: str) -> None:
        log.error("multiproc_executor.py:1063", "WorkerProc hit an exception.")
        log.error("multiproc_executor.py:1063", log.trace(traces.EXECUTE_MODEL, text))
