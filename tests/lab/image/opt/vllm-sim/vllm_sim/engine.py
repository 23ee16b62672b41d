"""VLLM::EngineCore: starts the ranks of the head's node, then runs one step after another for the requests it was given.

A request here is a number of tokens to be made; what they say is the API process's business. The engine core lives on when
the API process is killed, and takes everything down when a rank fails.
"""

import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from vllm_sim import VERSION, faults, knobs, log, processes, shm, traces
from vllm_sim.channel import Channel, Closed
from vllm_sim.config import KV_GIB_PER_TOKEN, EngineConfig
from vllm_sim.executor import Executor
from vllm_sim.log import Frame
from vllm_sim.scheduler import Scheduler

LAYER_S = 0.25  # of a long step: how often the ranks exchange what stands for its layers' activations
STALL_WARNING_S = 60.0
INIT_FAILED = (
    "Exception: WorkerProc initialization failed due to an exception in a background process. "
    "See stack trace for root cause."
)


class Fatal(Exception):
    """The engine core cannot go on."""


def run(config: EngineConfig, client: Channel, inherited: list[socket.socket | Channel]) -> int:
    """The engine core's process, from fork to exit."""
    processes.default_signals()
    for other in inherited:
        other.close()
    signals = processes.SignalPipe(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.set_title("VLLM::EngineCore")
    log.set_process("EngineCore")
    knobs.pause("engine_imports")
    engine = EngineCore(config, client, signals)
    engine.start()
    engine.run()
    return 0


class EngineCore:
    def __init__(self, config: EngineConfig, client: Channel, signals: processes.SignalPipe) -> None:
        self.config, self.client, self.signals = config, client, signals
        self.client_gone = False
        self.scheduler = Scheduler(config)
        self.steps = 0
        log.info("core.py:133", f"Initializing a V1 LLM engine (v{VERSION}) with config: {describe(config)}")
        self._refuse_fork()
        if config.nnodes > 1 and config.node_rank == 0:
            host = os.environ.get("VLLM_HOST_IP", config.master_addr)
            log.info(
                "multiproc_executor.py:153",
                f"DP group leader: node_rank=0, node_rank_within_dp=0, master_addr={config.master_addr}, "
                f"mq_connect_ip={host} (local), world_size={config.world_size}, local_world_size={config.local_world_size}",
            )
        self.segments = shm.Segments(rings=1, semaphores=1)
        self.executor = Executor(config, [client])
        self._tell({"workers": self.executor.pids})

    def _refuse_fork(self) -> None:
        """The published deployment's build broke with it, and so does this one."""
        if os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":
            self._fail(traces.SHM_RING, "AttributeError: 'ShmRingBuffer' object has no attribute 'shared_memory'")

    def start(self) -> None:
        self._collect("loaded")
        started = time.monotonic()
        if self.config.node_rank > 0:
            self._fail_as_follower()
        self._announce_kv_cache()
        for rank in self.executor.ranks:
            rank.channel.send({"warm_up": True})
        self._collect("ready")
        # Profiling and compilation ran in the ranks, before they said that they are loaded.
        took = time.monotonic() - started + knobs.phase_s("profile") + knobs.phase_s("compile_warm")
        log.info("core.py:402", f"init engine (profile, create kv cache, warmup model) took {took:.2f} s")
        self._tell({"started": True})

    def _collect(self, word: str) -> None:
        """Waits, silently and without limit, until every local rank said `word`."""
        missing = {rank.number for rank in self.executor.ranks}
        while missing:
            watched: list[Any] = [*self.executor.sources(), self.signals]
            for ready in select.select(watched, [], [])[0]:
                if ready is self.signals:
                    self._leave_when_told()
                message = self._message(ready)
                if message is None or "failed" in message:
                    self._fail_after_workers()
                missing.discard(message.get(word, -1))

    def _message(self, source: Channel | int) -> dict[str, Any] | None:
        """What a rank says; None when it is gone."""
        if not isinstance(source, Channel):
            return None
        try:
            return dict(source.receive())
        except Closed:
            return None

    def _announce_kv_cache(self) -> None:
        tokens, length = self.config.kv_cache_tokens, self.config.max_model_len
        if faults.on("kv-cache-too-small"):
            tokens = length // 2
        if tokens < length:
            needed, there = length * KV_GIB_PER_TOKEN, tokens * KV_GIB_PER_TOKEN
            self._fail(
                traces.KV_CACHE,
                f"ValueError: To serve at least one request with the model's max seq len ({length}), ({needed:.2f} GiB KV cache "
                f"is needed, which is larger than the available KV cache memory ({there:.2f} GiB). Based on the available "
                f"memory, the estimated maximum model length is {tokens}. Try increasing `gpu_memory_utilization` or "
                "decreasing `max_model_len` when initializing the engine.",
            )
        log.info(
            "kv_cache_utils.py:2327",
            f"GPU KV cache size: {tokens:,} tokens, Maximum concurrency for {length:,} tokens per request: "
            f"{tokens / length:.2f}x",
        )

    def _fail_after_workers(self) -> NoReturn:
        self.executor.shut_down()
        knobs.pause("failed_core")
        self._fail(traces.CORE_EXECUTOR, INIT_FAILED)

    def _fail_as_follower(self) -> NoReturn:
        """A second node without --headless."""
        text = "AssertionError: collective_rpc should not be called on follower node"
        log.error("core.py:1510", "EngineCore failed to start.")
        log.error("core.py:1510", log.trace(traces.FOLLOWER_RPC, text))
        for rank in list(self.executor.ranks):
            processes.kill(rank.pid or 0, signal.SIGKILL)
            log.error(
                "multiproc_executor.py:315",
                f"Worker proc VllmWorker-{rank.number} died unexpectedly (exit code: None), shutting down executor.",
            )
        self.executor.shut_down()
        self._end_failed(traces.FOLLOWER_RPC, text)

    def _fail(self, frames: tuple[Frame, ...], text: str) -> NoReturn:
        log.error("core.py:1510", "EngineCore failed to start.")
        log.error("core.py:1510", log.trace(frames, text))
        self._end_failed(frames, text)

    def _end_failed(self, frames: tuple[Frame, ...], text: str) -> NoReturn:
        log.write(2, "Process EngineCore:\n" + log.trace((*traces.CORE_PROCESS, *frames), text) + "\n")
        for pid in self.executor.pids if hasattr(self, "executor") else ():
            processes.kill(pid, signal.SIGKILL)
        if hasattr(self, "segments"):
            self.segments.unlink()
        processes.leave(1)

    def run(self) -> None:
        try:
            while True:
                self._take_work(wait=not self.scheduler.busy)
                if self.scheduler.busy:
                    self._step()
        except Fatal as exc:
            self._die(str(exc))

    def _take_work(self, wait: bool) -> None:
        """New requests and aborts from the API process, and the deaths of ranks."""
        while self._look(None if wait else 0.0):
            if self.scheduler.busy:
                wait = False

    def _look(self, timeout_s: float | None, asked: Channel | None = None) -> bool:
        """One look at everything but `asked`, whose answer the caller reads. False if nothing came in time."""
        sources = self.executor.sources()
        watched: list[Any] = [source for source in sources if isinstance(source, int)] + [self.signals]
        if not self.client_gone:
            watched.append(self.client)
        if asked is not None:
            watched.append(asked)
        ready = select.select(watched, [], [], timeout_s)[0]
        if self.signals in ready:
            self._leave_when_told()
        for source in ready:
            if isinstance(source, int):
                self.executor.obituary(sources[source])
                raise Fatal("RuntimeError: Executor failed.")
        if self.client in ready:
            self._take_message()
        return bool(ready)

    def _take_message(self) -> None:
        try:
            message = self.client.receive()
            while True:
                if "add" in message:
                    self.scheduler.add(message["add"], message["prompt_tokens"], message["tokens"])
                else:
                    self.scheduler.abort(message["abort"])
                if not self.client.waiting():
                    return
                message = self.client.receive()
        except Closed:
            self.client_gone = True  # an orphan: alive, its ports held, nobody to ask it

    def _step(self) -> None:
        """Running, waiting and cache usage are told after every step, with outputs or without."""
        planned = self.scheduler.plan()
        if planned is None:
            return
        seconds = planned.seconds + (knobs.phase_s("first_request") if self.steps == 0 else 0.0)
        self.steps += 1
        self._execute({"step": self.steps, "seconds": seconds, "more": planned.more, "layers": int(seconds / LAYER_S)})
        self._tell({"outputs": self.scheduler.outputs(planned.count), **self.scheduler.state()})

    def _execute(self, step: dict[str, Any]) -> None:
        """One forward pass over all ranks. Raises Fatal."""
        channel = self.executor.ranks[0].channel
        limit_s = float(os.environ.get("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "300"))
        started = time.monotonic()
        warn_at = started + STALL_WARNING_S
        try:
            channel.send(step)
            while not (channel.waiting() or select.select([channel], [], [], 0)[0]):
                now = time.monotonic()
                if now >= started + limit_s:
                    self._dump(step)
                    raise Fatal("TimeoutError: RPC call to execute_model timed out.")
                if now >= warn_at:
                    warn_at += STALL_WARNING_S
                    log.info(
                        "shm_broadcast.py:681",
                        "No available shared memory broadcast block found in 60 seconds. This typically happens when some "
                        "processes are hanging or doing some time-consuming work (e.g. compilation, weight/kv cache "
                        "quantization).",
                    )
                self._look(min(started + limit_s, warn_at) - now, asked=channel)
            answer = channel.receive()
        except Closed:
            self._look(1.0)
            raise Fatal("RuntimeError: Executor failed.") from None
        if "error" in answer:
            self._dump(step)
            raise Fatal(
                f"RuntimeError: Worker failed with error '{answer['error']}', please check the stack trace above for the root "
                "cause"
            )

    def _dump(self, step: dict[str, Any]) -> None:
        log.error(
            "dump_input.py:72",
            f"Dumping input data for V1 LLM engine (v{VERSION}) with config: {describe(self.config)}",
        )
        tokens = json.dumps(dict.fromkeys(self.scheduler.running, 1))
        log.error(
            "dump_input.py:79",
            f"Dumping scheduler output for model execution: SchedulerOutput(num_scheduled_tokens={tokens}, step={step['step']})",
        )

    def _die(self, text: str) -> NoReturn:
        log.error("core.py:1512", "EngineCore encountered a fatal error.")
        log.error("core.py:1512", log.trace(traces.BUSY_LOOP, text))
        self._tell({"dead": True})
        self.executor.shut_down()
        processes.leave(1)

    def _leave_when_told(self) -> NoReturn:
        log.info("core.py:1454", "[shutdown] EngineCore: trigger received signal=SIGTERM")
        self.executor.shut_down()
        self.segments.unlink()
        processes.leave(0)

    def _tell(self, message: Any) -> None:
        try:
            self.client.send(message)
        except Closed:
            self.client_gone = True


def describe(config: EngineConfig) -> str:
    """The configuration in the words of the real line, cut to what this simulation has."""
    given = config.arguments
    return (
        f"model='{config.model}', speculative_config={config.speculative}, tokenizer='{config.model}', "
        f"skip_tokenizer_init=False, tokenizer_mode={given['tokenizer_mode']}, revision=None, "
        f"trust_remote_code={given['trust_remote_code']}, dtype=torch.{config.dtype}, max_seq_len={config.max_model_len}, "
        f"load_format={given['load_format']}, tensor_parallel_size={config.tensor_parallel}, "
        f"pipeline_parallel_size={config.pipeline_parallel}, data_parallel_size=1, "
        f"disable_custom_all_reduce={given['disable_custom_all_reduce']}, quantization={given['quantization']}, "
        f"enforce_eager={config.enforce_eager}, kv_cache_dtype={given['kv_cache_dtype']}, device_config=cuda, "
        f"reasoning_parser='{given['reasoning_parser'] or ''}', seed={given['seed']}, "
        f"served_model_name={config.served_names[0]}, compilation_config={given['compilation_config']}, simulated=True"
    )
