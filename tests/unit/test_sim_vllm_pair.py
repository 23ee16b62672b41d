"""The simulated pair against FIELD's records: its start, its processes, and each of its ways to die."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sim_vllm import IMAGE, Lab, recorded, shared_inodes, wait_for

START_ORDER = [
    "simulated vLLM of the sparkd lab",
    "non-default args: {",
    "Resolved architecture: ",
    "Using max model len ",
    "Initializing a V1 LLM engine (v",
    "world_size=2 rank=0 local_rank=0 distributed_init_method=tcp://",
    "rank 0 in world size 2 is assigned as DP rank 0, PP rank 0, PCP rank 0, TP rank 0, ",
    "Starting to load model ",
    "Loading safetensors checkpoint shards:   0% Completed | 0/46 [00:00<?, ?it/s]",
    "Loading safetensors checkpoint shards: 100% Completed | 46/46 [",
    "Loading weights took ",
    "Loading drafter model...",
    "Model loading took ",
    "torch.compile took ",
    "Available KV cache memory: ",
    "GPU KV cache size: 612,341 tokens, Maximum concurrency for 200,000 tokens per request: 3.06x",
    "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   0%",
    "Capturing CUDA graphs (decode, FULL): 100%",
    "Graph capturing finished in ",
    "init engine (profile, create kv cache, warmup model) took ",
    "Starting vLLM server on http://127.0.0.1:",
    "INFO:     Started server process [",
    "INFO:     Application startup complete.",
]
DEATH_CHAIN = [
    "EngineCore encountered a fatal error.",
    "AsyncLLM output_handler failed.",
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
    "INFO:     Shutting down",
    "INFO:     Finished server process [",
    "[shutdown] MPClient: start timeout=0s",
    "[shutdown] Process manager: force killing remaining process EngineCore pid ",
    "[shutdown] MPClient: complete",
]
LINE = re.compile(r"\((\w+) pid=(\d+)\) (INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d \[[\w.]+:\d+\] ")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        lab.end()


def in_order(lines: list[str], markers: list[str]) -> None:
    rest = iter(lines)
    for marker in markers:
        assert any(marker in line for line in rest), f"no {marker!r} after the marker before it"


def ready_pair(lab: Lab, **environment: str) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    pair = lab.start_pair(**environment)
    lab.wait_ready()
    return pair


def kill(lab: Lab, title: str) -> int:
    pid = lab.processes()[title]
    os.kill(pid, signal.SIGKILL)
    return pid


def health(lab: Lab) -> int | None:
    """The status of /health; None where nobody listens."""
    try:
        return httpx.get(f"{lab.url}/health").status_code
    except httpx.TransportError:
        return None


class InFlight(threading.Thread):
    """A request that takes long enough to be in flight when something dies."""

    def __init__(self, lab: Lab, stream: bool = False) -> None:
        super().__init__(daemon=True)
        self.lab, self.stream = lab, stream
        self.answer: httpx.Response | None = None
        self.start()
        wait_for(lambda: "num_requests_running{" in httpx.get(f"{lab.url}/metrics").text and self.counted())

    def counted(self) -> bool:
        text = httpx.get(f"{self.lab.url}/metrics").text
        return re.search(r"^vllm:num_requests_running\{.*\} 1\.0$", text, re.MULTILINE) is not None

    def run(self) -> None:
        self.answer = self.lab.chat(ignore_eos=True, max_tokens=100_000, stream=self.stream)

    def status(self) -> int:
        self.join(20)
        assert self.answer is not None
        return self.answer.status_code


def test_the_head_says_what_the_real_one_says_in_its_order(lab: Lab) -> None:
    ready_pair(lab)
    lines = lab.log(0)
    in_order(lines, START_ORDER)
    prefixed = [match for match in map(LINE.match, lines) if match]
    assert {match[1] for match in prefixed} == {"APIServer", "EngineCore", "Worker", "Worker_TP0"}
    assert "\r" in lab.log_path(0).read_bytes().decode()
    # The markers that the CPU recording shares, in its own order.
    shared = [marker for marker in START_ORDER[1:] if any(marker in line for line in recorded("pair-head.log"))]
    in_order(recorded("pair-head.log"), shared)
    assert len(shared) > 8


def test_a_worker_has_no_banner_no_arguments_and_no_ready_line(lab: Lab) -> None:
    ready_pair(lab)
    text = "\n".join(lab.log(1))
    for words in ("version 0.32", "non-default args", "startup complete", "checkpoint shards", "Capturing CUDA graphs"):
        assert words not in text
    assert "Inferred data_parallel_rank 0 from node_rank 1" in text
    address = f"127.0.0.1:{lab.master_port}"
    assert f"headless multiproc executor, with head node address {address} for torch.distributed process group." in text
    assert "(Worker_TP1 pid=" in text
    assert "(simulated vLLM of the sparkd lab: no model runs here)" in text


def parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def test_processes_ports_and_shared_memory(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    found = lab.processes()
    core, first, second = (found[f"VLLM::{name}"] for name in ("EngineCore", "Worker_TP0", "Worker_TP1"))
    assert [parent(pid) for pid in (core, first, second)] == [head.pid, core, worker.pid]
    comms = [(Path("/proc") / str(pid) / "comm").read_text().strip() for pid in (head.pid, core, first, second)]
    assert comms == ["vllm", "VLLM::EngineCor", "VLLM::Worker_TP", "VLLM::Worker_TP"]
    arguments = (Path("/proc") / str(head.pid) / "cmdline").read_text().rstrip("\0").split("\0")
    assert arguments[-len(lab.rank_arguments(0)) - 1 :] == ["serve", *lab.rank_arguments(0)]
    listening = listeners()
    assert listening[lab.master_port] & sockets(first)
    assert listening[lab.api_port] & sockets(head.pid)
    assert not listening[lab.api_port] & (sockets(core) | sockets(first))
    names = {file.stat().st_ino: file.name for file in Path("/dev/shm").iterdir()}
    for pid, rings in ((core, 1), (first, 3), (second, 3)):
        assert sum(names.get(inode, "").startswith("psm_") for inode in shared_inodes(pid)) == rings
    assert sum(name.startswith("sem.mp-") for inode, name in names.items() if inode in shared_inodes(core)) == 1


def listeners() -> dict[int, set[int]]:
    """The inodes of listening sockets by port."""
    found: dict[int, set[int]] = {}
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(int(fields[9]))
    return found


def sockets(pid: int) -> set[int]:
    links = [str(file.readlink()) for file in (Path("/proc") / str(pid) / "fd").iterdir()]
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def test_expert_parallel_shows_in_the_titles(lab: Lab) -> None:
    lab.start(1, *lab.rank_arguments(1, "--enable-expert-parallel"))
    lab.start(0, *lab.rank_arguments(0, "--enable-expert-parallel"))
    lab.wait_ready()
    assert {"VLLM::Worker_TP0_EP0", "VLLM::Worker_TP1_EP1"} <= lab.processes().keys()
    assert lab.says(0, "(Worker_TP0_EP0 pid=")


def test_the_second_start_finds_the_compile_cache_warm(lab: Lab) -> None:
    lab.start_single()
    lab.wait_ready()
    assert lab.says(0, "Compiling a graph for compile range (1, 8192) takes ")
    lab.started[0].terminate()
    lab.started[0].wait(20)
    lab.start_single()
    lab.wait_ready()
    assert lab.says(0, "Directly load the compiled graph(s) for compile range (1, 8192) from the cache")


def test_the_port_is_bound_early_and_refuses(lab: Lab) -> None:
    lab.fault(0, "hang-during-load")
    lab.start_pair()
    wait_for(lambda: lab.says(0, "Starting to load model"))
    assert health(lab) is None
    with socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", lab.api_port))
    lab.fault(0, "hang-during-load", on=False)
    lab.wait_ready()
    assert health(lab) == 200


def test_either_order_works(lab: Lab) -> None:
    lab.start(0, *lab.rank_arguments(0))
    wait_for(lambda: lab.says(0, "world_size=2 rank=0"))
    lab.start(1, *lab.rank_arguments(1))
    lab.wait_ready()


# Deaths of a serving pair.


def test_worker_rank_killed_while_idle_is_noticed_by_the_next_request_only(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    kill(lab, "VLLM::Worker_TP1")
    assert worker.wait(20) == 0
    died = "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."
    assert lab.says(1, died)
    assert health(lab) == 200
    assert head.poll() is None
    answer = lab.chat()
    assert answer.status_code == 500
    text = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    assert answer.json() == {"error": {"message": text, "type": "InternalServerError", "param": None, "code": 500}}
    assert head.wait(20) == 0
    in_order(lab.log(0), ["WorkerProc hit an exception.", "Connection reset by peer.", *DEATH_CHAIN])
    recording = recorded("pair-head.log")
    in_order(recording, ["WorkerProc hit an exception.", "Connection reset by peer.", *DEATH_CHAIN])


def test_worker_rank_killed_in_flight(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    request = InFlight(lab)
    kill(lab, "VLLM::Worker_TP1")
    assert request.status() == 500
    assert (head.wait(20), worker.wait(20)) == (0, 0)


def test_head_rank_killed_in_flight(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    request = InFlight(lab)
    kill(lab, "VLLM::Worker_TP0")
    assert request.status() == 500
    assert head.wait(20) == 0
    assert lab.says(0, "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.")
    wait_for(lambda: lab.says(1, "WorkerProc hit an exception."))
    assert worker.poll() is None
    assert "VLLM::Worker_TP1" in lab.processes()


def test_a_cut_stream_ends_with_an_error_event(lab: Lab) -> None:
    ready_pair(lab)
    request = InFlight(lab, stream=True)
    kill(lab, "VLLM::Worker_TP1")
    assert request.status() == 200
    assert request.answer is not None
    *_, error, done, _ = request.answer.text.split("\n\n")
    assert error.startswith('data: {"error":{"message":"EngineCore encountered an issue.')
    assert done == "data: [DONE]"


def test_worker_top_killed_leaves_a_serving_orphan(lab: Lab) -> None:
    _, worker = ready_pair(lab)
    worker.kill()
    wait_for(lambda: lab.says(1, "Parent process exited, terminating worker queues"))
    assert lab.chat().status_code == 200
    assert "VLLM::Worker_TP1" in lab.processes()


def test_head_top_killed_leaves_orphans_that_hold_the_port(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    head.kill()
    head.wait(20)
    assert health(lab) is None
    found = lab.processes()
    assert {"VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"} <= found.keys()
    assert listeners()[lab.master_port] & sockets(found["VLLM::Worker_TP0"])
    assert shared_inodes(found["VLLM::EngineCore"]) & {file.stat().st_ino for file in Path("/dev/shm").iterdir()}
    assert worker.poll() is None
    lab.started.remove(head)
    lab.start(0, *lab.rank_arguments(0))
    assert lab.started[-1].wait(20) == 1
    assert lab.says(0, f"port: {lab.master_port}, useIpv6: false, code: -98, name: EADDRINUSE")


def test_engine_core_killed(lab: Lab) -> None:
    head, worker = ready_pair(lab, VLLM_SIM_STOP_SCALE="0.5")
    kill(lab, "VLLM::EngineCore")
    wait_for(lambda: health(lab) == 503)
    assert head.wait(20) == 0
    assert lab.says(0, "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup")
    assert worker.poll() is None
    assert "VLLM::Worker_TP0" not in lab.processes()


def test_a_hang_ends_by_the_execution_timeout(lab: Lab) -> None:
    head, worker = ready_pair(lab, VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS="1")
    lab.fault(1, "hang-requests")
    assert lab.chat().status_code == 500
    assert head.wait(20) == 0
    in_order(
        lab.log(0), ["EngineCore encountered a fatal error.", "TimeoutError: RPC call to execute_model timed out."]
    )
    assert worker.poll() is None


def test_crash_in_the_next_request(lab: Lab) -> None:
    head, _ = ready_pair(lab)
    lab.fault(1, "crash-next-request")
    assert lab.chat().status_code == 500
    assert head.wait(20) == 0
    assert lab.says(1, "CUDA error: an illegal memory access was encountered")
    assert lab.says(0, "Worker failed with error 'CUDA error: an illegal memory access")
    assert not (lab.directory / "node1/faults/crash-next-request").exists()


# Stops.


def test_sigterm_to_a_ready_head_is_clean_and_the_worker_stays(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    head.terminate()
    assert head.wait(20) == 0
    in_order(lab.log(0), ["[shutdown] API server: shutdown triggered", "[shutdown] MPClient: complete"])
    wait_for(lambda: lab.processes().keys() == {*command_of(worker.pid), "VLLM::Worker_TP1", *trackers(lab)})
    assert worker.poll() is None


def command_of(pid: int) -> list[str]:
    return [(Path("/proc") / str(pid) / "cmdline").read_text().rstrip("\0").replace("\0", " ")]


def trackers(lab: Lab) -> list[str]:
    return [title for title in lab.processes() if "resource_tracker" in title]


def test_sigterm_to_the_worker_takes_grace_term_and_kill(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    worker.terminate()
    assert worker.wait(20) == 0
    steps = [
        "[shutdown] Executor: waiting for worker exit count=1",
        "still running after grace period; sending SIGTERM count=1",
    ]
    in_order(lab.log(1), [*steps, "sending SIGKILL count=1"])
    assert health(lab) == 200
    assert lab.chat().status_code == 500
    assert head.wait(20) == 0


def test_a_starting_head_ignores_the_first_sigterm(lab: Lab) -> None:
    head = lab.start(0, *lab.rank_arguments(0))
    wait_for(lambda: lab.says(0, "world_size=2 rank=0"))
    head.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        head.wait(0.5)
    head.terminate()
    assert head.wait(20) == 130
    assert lab.says(0, "force killing")
    wait_for(lambda: not list(lab.pids()))


def test_a_stop_leaves_nothing_in_shared_memory(lab: Lab) -> None:
    head, worker = ready_pair(lab)
    segments = {inode for pid in lab.pids() for inode in shared_inodes(pid)}
    worker.terminate()
    head.terminate()
    assert (worker.wait(20), head.wait(20)) == (0, 0)
    wait_for(lambda: not segments & {file.stat().st_ino for file in Path("/dev/shm").iterdir()})


# Starts that fail.


def test_absent_peers_with_timeouts(lab: Lab) -> None:
    timeouts = ["--distributed-timeout-seconds", "1", "--cpu-distributed-timeout-seconds", "1"]
    head = lab.start(0, *lab.rank_arguments(0, *timeouts))
    assert head.wait(20) == 1
    in_order(
        lab.log(0),
        [
            "WorkerProc failed to start.",
            "torch.distributed.DistStoreError: Timed out after 2 seconds waiting for clients. 1/2 clients joined.",
            "EngineCore failed to start.",
            "Exception: WorkerProc initialization failed due to an exception in a background process.",
            "Process EngineCore:",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ],
    )
    worker = lab.start(1, *lab.rank_arguments(1, *timeouts))
    assert worker.wait(20) == 1
    where = f"(127.0.0.1, {lab.master_port})"
    text = f"The client socket has timed out after 1000ms while trying to connect to {where}."
    assert lab.says(1, f"torch.distributed.DistNetworkError: {text}")
    assert lab.log(1)[-2].startswith("Exception: WorkerProc initialization failed due to an exception")


def test_the_master_port_is_taken(lab: Lab) -> None:
    with socket.create_server(("", lab.master_port)):
        head = lab.start(0, *lab.rank_arguments(0))
        assert head.wait(20) == 1
    said = next(line for line in recorded("head-master-port-in-use.log") if "DistNetworkError" in line)
    assert lab.says(0, said.partition("] ")[2].replace("29502", str(lab.master_port)))


def test_a_worker_without_headless_fails_and_leaves_the_head_hanging(lab: Lab) -> None:
    head = lab.start(0, *lab.rank_arguments(0))
    arguments = [word for word in lab.rank_arguments(1) if word != "--headless"]
    arguments[arguments.index("--port") + 1] = "0"
    worker = lab.start(1, *arguments)
    assert worker.wait(20) == 1
    in_order(
        lab.log(1),
        [
            "EngineCore failed to start.",
            "AssertionError: collective_rpc should not be called on follower node",
            "Worker proc VllmWorker-1 died unexpectedly (exit code: None), shutting down executor.",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ],
    )
    assert head.poll() is None
    assert not lab.ready()


def test_a_peer_lost_during_the_start_leaves_the_head_hanging_silently(lab: Lab) -> None:
    lab.fault(1, "hang-during-load")
    head, worker = lab.start_pair()
    wait_for(lambda: lab.says(0, "Available KV cache memory"))
    before = lab.log(0)
    kill(lab, "VLLM::Worker_TP1")
    assert worker.wait(20) == 1
    assert head.poll() is None
    assert lab.log(0) == before


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "oom-at-start",
            "Free memory on device cuda:0 (4.75/119.67 GiB) on startup is less than desired GPU memory utilization",
        ),
        ("eaddrinuse-at-start", "name: EADDRINUSE, message: address already in use"),
        ("kv-cache-too-small", "the estimated maximum model length is 100000."),
        ("crash-during-load", "CUDA error: an illegal memory access was encountered"),
        ("killed-during-load", "Starting to load model"),
    ],
)
def test_faults_of_the_start(lab: Lab, fault: str, words: str) -> None:
    lab.fault(0, fault)
    head, _ = lab.start_pair()
    assert head.wait(20) == 1
    in_order(lab.log(0), ["EngineCore failed to start.", "RuntimeError: Engine core initialization failed."])
    assert lab.says(0, words)


def test_fork_breaks_this_build_as_it_broke_the_published_one(lab: Lab) -> None:
    head = lab.start(0, *lab.rank_arguments(0), VLLM_WORKER_MULTIPROC_METHOD="fork")
    assert head.wait(20) == 1
    assert lab.says(0, "AttributeError: 'ShmRingBuffer' object has no attribute 'shared_memory'")


def test_the_patch_applied_twice_breaks_the_load(lab: Lab, tmp_path: Path) -> None:
    """On a copy of the image, because the engine counts in its own."""
    image = tmp_path / "image"
    subprocess.run(["cp", "-r", IMAGE, image], check=True)
    file = next(image.glob("usr/local/lib/python3*/dist-packages/vllm/model_executor/layers/quantization/mxfp4.py"))
    file.write_text(file.read_text() + "    # torch.cuda.empty_cache()\n")
    done = subprocess.run(
        [image / "usr/local/bin/vllm", "serve", lab.model, "--port", str(lab.api_port)],
        capture_output=True,
        env=lab.environment(0),
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert b"UnboundLocalError: local variable 'w13' referenced before assignment" in done.stdout
