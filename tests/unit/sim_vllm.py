"""Runs the lab's simulated vLLM for the unit tests: both nodes of a pair on loopback, at a tiny scale.

Every process of a lab carries its launch id in the environment, by which `end` finds and ends them all.
"""

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from free_port import free_port

IMAGE = Path(__file__).parents[1] / "lab" / "image"
FIELD = Path(__file__).parents[1] / "data" / "field"
VLLM = IMAGE / "usr/local/bin/vllm"
MAKE_MODEL = IMAGE / "opt/vllm-sim/make-model"
WAIT_S = 60.0  # of what takes one or two


def wait_for(question: Callable[[], Any], limit_s: float = WAIT_S) -> Any:
    """The first true answer. Raises AssertionError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still waiting for {question}"
        time.sleep(0.02)


def recorded(name: str) -> list[str]:
    """The lines of a field recording, without the column that the recorder added."""
    return [re.sub(r"^ *\d+\.\d\d ", "", line) for line in (FIELD / name).read_text().splitlines()]


class Lab:
    """Two nodes' directories, a model, and the processes that were started for them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.launch_id = f"test-{uuid.uuid4()}"
        self.api_port, self.master_port = free_port(), free_port()
        self.master_addr = "127.0.0.1"
        self.enter: dict[int, list[str]] = {}  # by node: the command that enters its network namespace
        self.model = directory / "models" / "DeepSeek-V4-Flash"
        subprocess.run([MAKE_MODEL, self.model], check=True)
        self.started: list[subprocess.Popen[bytes]] = []
        self.segments: set[int] = set()  # inodes in /dev/shm that are ours to remove

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def environment(self, node: int, **more: str) -> dict[str, str]:
        lab = self.directory / f"node{node}"
        (lab / "faults").mkdir(parents=True, exist_ok=True)
        return {
            "PATH": os.environ["PATH"],
            "SPARKD_LAUNCH_ID": self.launch_id,
            "VLLM_SIM_LAB": str(lab),
            "VLLM_SIM_SCALE": "0.0004",
            "VLLM_SIM_STOP_SCALE": "0.02",
            "VLLM_SIM_TOKENS_PER_S": "5000",
            "VLLM_CACHE_ROOT": str(lab / "cache"),
            "VLLM_HOST_IP": "127.0.0.1",
            **more,
        }

    def fault(self, node: int, name: str, on: bool = True) -> None:
        file = self.directory / f"node{node}" / "faults" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch() if on else file.unlink(missing_ok=True)

    def start(self, node: int, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """`vllm serve` with what a test gives it; its output goes to log(node)."""
        with self.log_path(node).open("wb") as log:
            process = subprocess.Popen(
                [*self.enter.get(node, []), VLLM, "serve", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment(node, **environment),
            )
        self.started.append(process)
        return process

    def rank_arguments(self, node: int, *more: str) -> list[str]:
        """The published deployment's command line for this rank."""
        text = f"""{self.model} --served-model-name deepseek-v4-flash --host 127.0.0.1 --port {self.api_port}
            --trust-remote-code --tensor-parallel-size 2 --pipeline-parallel-size 1 --kv-cache-dtype fp8 --block-size 256
            --enable-prefix-caching --enable-chunked-prefill --max-model-len 200000 --max-num-seqs 4
            --max-num-batched-tokens 16384 --gpu-memory-utilization 0.90 --disable-custom-all-reduce
            --compilation-config {{"cudagraph_mode":"FULL_AND_PIECEWISE","custom_ops":["all"]}}
            --speculative-config {{"method":"deepseek_mtp","num_speculative_tokens":2}}
            --tokenizer-mode deepseek_v4 --tool-call-parser deepseek_v4 --enable-auto-tool-choice
            --reasoning-parser deepseek_v4 --default-chat-template-kwargs {{"thinking":true}} --load-format safetensors
            --nnodes 2 --node-rank {node} --master-addr {self.master_addr} --master-port {self.master_port}"""
        return [*text.split(), *(["--headless"] if node else []), *more]

    def start_pair(self, **environment: str) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        """Head and worker, not waited for."""
        worker = self.start(1, *self.rank_arguments(1), **environment)
        head = self.start(0, *self.rank_arguments(0), **environment)
        return head, worker

    def start_single(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        common = ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.api_port)]
        return self.start(0, str(self.model), *common, "--max-model-len", "1024", *arguments, **environment)

    def ready(self) -> bool:
        return any("Application startup complete." in line for line in self.log(0))

    def wait_ready(self) -> None:
        try:
            wait_for(self.ready)
        except AssertionError:
            logs = [node for node in (0, 1) if self.log_path(node).exists()]
            said = "\n".join(f"node {node}: {line}" for node in logs for line in self.log(node)[-12:])
            raise AssertionError(f"not ready after {WAIT_S:.0f} s\n{said}") from None
        self._note_segments()

    def log_path(self, node: int) -> Path:
        return self.directory / f"vllm{node}.log"

    def log(self, node: int) -> list[str]:
        """Lines, progress bars' redrawings included."""
        return re.split(r"[\r\n]", self.log_path(node).read_text())

    def says(self, node: int, words: str) -> bool:
        return any(words in line for line in self.log(node))

    def post(self, body: dict[str, Any], path: str = "/v1/chat/completions", limit_s: float = WAIT_S) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=limit_s)

    def chat(self, prompt: str = "hello", **more: Any) -> httpx.Response:
        return self.post({"messages": [{"role": "user", "content": prompt}], **more})

    def processes(self) -> dict[str, int]:
        """The living processes of this lab by title; `vllm` and the trackers by their command."""
        return {title(pid): pid for pid in self.pids()}

    def pids(self) -> Iterator[int]:
        marker = f"SPARKD_LAUNCH_ID={self.launch_id}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if marker in (entry / "environ").read_bytes().split(b"\0") and state(int(entry.name)) != "Z":
                        yield int(entry.name)
                except OSError:
                    continue

    def end(self) -> None:
        """Kills everything, lets the resource trackers clean /dev/shm, and removes what they do not know."""
        self._note_segments()
        for pid in self.pids():
            if "resource_tracker" not in title(pid):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait(WAIT_S)
        wait_for(lambda: not list(self.pids()))
        for file in Path("/dev/shm").iterdir():
            if file.stat().st_ino in self.segments:
                file.unlink()

    def _note_segments(self) -> None:
        self.segments |= {inode for pid in self.pids() for inode in shared_inodes(pid)}


def title(pid: int) -> str:
    return (Path("/proc") / str(pid) / "cmdline").read_text().rstrip("\0").replace("\0", " ")


def state(pid: int) -> str:
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]


def shared_inodes(pid: int) -> set[int]:
    """Of what a process maps from /dev/shm. Semaphores show there under the temporary name that glibc gave them."""
    try:
        lines = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in lines if "/dev/shm/" in line}
