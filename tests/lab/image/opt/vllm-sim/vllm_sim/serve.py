"""`vllm serve`: the top process, as head (API server over an engine core) or as headless worker.

head      starting --ready--> serving --SIGTERM--> exit 0 in 0.4 s
          starting --first SIGTERM--> ignored; --second--> 5 s, kill, exit 130
          serving --engine died--> 500 to everybody, exit 0 (yes, 0)
headless  --SIGTERM--> 11 s, exit 0;  --rank died--> exit 0 after 2 s;  --head gone--> stays for ever
"""

import argparse
import select
import signal
import socket
from typing import Any

from vllm_sim import NOTE, VERSION, cli, config, log, processes, shm, traces
from vllm_sim.channel import Channel, Closed
from vllm_sim.config import EngineConfig, Refused
from vllm_sim.engine import INIT_FAILED
from vllm_sim.executor import Executor
from vllm_sim.head import Head
from vllm_sim.knobs import stop_pause

BANNER = f"""
       █     █     █▄   ▄█
 ▄▄ ▄█ █     █     █ ▀▄▀ █  version {VERSION}
  █▄█▀ █     █     █     █  model   {{model}}
   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀
"""


def run(arguments: argparse.Namespace) -> int:
    """Raises nothing: what vLLM refuses is printed as its traceback. Returns the exit status."""
    log.plain(NOTE)
    try:
        config.check_arguments(arguments)
        return run_headless(arguments) if arguments.headless else run_server(arguments)
    except Refused as refusal:
        log.write(2, log.trace(refusal.frames, refusal.text) + "\n")
        return refusal.status


def run_server(arguments: argparse.Namespace) -> int:
    log.set_process("APIServer")
    log.info("api_utils.py:347", BANNER.format(model=arguments.model))
    log.info("api_utils.py:286", f"non-default args: {cli.non_default(arguments)}")
    sock = _bind(arguments)
    settings = config.load(arguments, config.locate_model(arguments))
    _announce_model(settings)
    signals = processes.SignalPipe(signal.SIGTERM, signal.SIGINT)
    shm.start_tracker()
    head = Head(settings, sock, signals)
    status = head.wait_started()
    return head.serve() if status is None else status


def run_headless(arguments: argparse.Namespace) -> int:
    """No banner, no arguments, no ready line: that is how a headless worker's log looks."""
    log.set_process("MainProcess")
    settings = config.load(arguments, config.locate_model(arguments))
    _announce_model(settings)
    log.info(
        "serve.py:224",
        f"Launching vLLM (v{VERSION}) headless multiproc executor, with head node address {settings.master_addr}:"
        f"{settings.master_port} for torch.distributed process group.",
    )
    signals = processes.SignalPipe(signal.SIGTERM, signal.SIGINT)
    shm.start_tracker()
    segments = shm.Segments(rings=1, untracked_semaphores=1)
    executor = Executor(settings)
    try:
        _supervise(executor, signals)
    except Refused:
        segments.unlink()
        raise
    segments.unlink()
    return 0


def _supervise(executor: Executor, signals: processes.SignalPipe) -> None:
    """Until somebody asks for an end. Raises Refused when a rank does not start; a rank that dies later ends us with 0."""
    ready: set[int] = set()
    while True:
        sources = executor.sources()
        watched: list[Any] = [*sources, signals]
        for source in select.select(watched, [], [])[0]:
            if source is signals:
                executor.shut_down()
                return
            rank = sources[source]
            if isinstance(source, Channel):
                message = _receive(source)
                if "ready" in message:
                    ready.add(rank.number)
                if "failed" not in message:
                    continue
            if rank.number not in ready:
                executor.shut_down()
                raise Refused(traces.HEADLESS_EXECUTOR, INIT_FAILED)
            executor.obituary(rank)
            executor.shut_down()
            stop_pause(2.0)
            processes.leave(0)


def _receive(channel: Channel) -> dict[str, object]:
    """What a rank says; nothing, and its end closed, when it is gone: its pidfd tells the rest."""
    try:
        return dict(channel.receive())
    except Closed:
        channel.close()
        return {}


def _announce_model(settings: EngineConfig) -> None:
    log.info("model.py:733", f"Resolved architecture: {settings.architecture}")
    log.info("model.py:2152", f"Using max model len {settings.max_model_len}")
    if settings.nnodes > 1:
        log.info("arg_utils.py:2472", f"Inferred data_parallel_rank 0 from node_rank {settings.node_rank}")
    tokens = settings.max_num_batched_tokens
    log.info("scheduler.py:307", f"Chunked prefill is enabled with max_num_batched_tokens={tokens}.")
    if settings.enforce_eager:
        log.warning(
            "vllm.py:1703",
            "Enforce eager set, disabling torch.compile, CUDAGraphs, and JIT kernel warmup. This is equivalent to setting "
            "-cc.mode=none -cc.cudagraph_mode=none and --kernel_config.enable_jit_warmup=False",
        )


def _bind(arguments: argparse.Namespace) -> socket.socket:
    """The API port, taken early and refusing connections until the server listens. Raises Refused."""
    host = arguments.host or ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, arguments.port))
    except OSError as exc:
        raise Refused(traces.SETUP_SERVER, f"OSError: [Errno {exc.errno}] {exc.strerror}") from exc
    return sock
