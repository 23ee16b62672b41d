"""The simulated pair over a link that goes away: two network namespaces of this test's own, joined by a veth pair."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sim_vllm import Lab, wait_for

HEAD, WORKER = (f"simvllm{node}-{os.getpid()}" for node in (0, 1))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Lab]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    lab = Lab(tmp_path)
    lab.master_addr = "10.0.0.1"
    lab.enter = {0: ["ip", "netns", "exec", HEAD], 1: ["ip", "netns", "exec", WORKER]}
    try:
        for name in (HEAD, WORKER):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", HEAD, "link", "add", "bond0", "type", "veth", "peer", "name", "bond0", "netns", WORKER)
        for name, address in ((HEAD, "10.0.0.1/24"), (WORKER, "10.0.0.2/24")):
            ip("-n", name, "address", "add", address, "dev", "bond0")
            ip("-n", name, "link", "set", "bond0", "up")
        yield lab
    finally:
        lab.end()
        for name in (HEAD, WORKER):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=10)


def ask(lab: Lab, path: str, limit_s: float, *more: str) -> subprocess.Popen[bytes]:
    url = f"http://127.0.0.1:{lab.api_port}{path}"
    command = [*lab.enter[0], "curl", "-s", "-m", str(limit_s), "-o", "/dev/null", "-w", "%{http_code}", *more, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def status(asked: subprocess.Popen[bytes]) -> str:
    return asked.communicate(timeout=30)[0].decode()


def chat(lab: Lab, limit_s: float = 20.0) -> subprocess.Popen[bytes]:
    return ask(lab, "/v1/chat/completions", limit_s, "-d", '{"messages":[{"role":"user","content":"hi"}]}')


def test_a_request_hangs_while_the_link_is_down_and_is_answered_when_it_returns(linked: Lab) -> None:
    head, worker = linked.start_pair(VLLM_HOST_IP="10.0.0.77")
    linked.wait_ready()
    assert status(chat(linked)) == "200"
    ip("-n", WORKER, "link", "set", "bond0", "down")
    hanging = chat(linked)
    time.sleep(1.0)
    assert hanging.poll() is None
    assert status(ask(linked, "/health", 5)) == "200"
    ip("-n", WORKER, "link", "set", "bond0", "up")
    assert status(hanging) == "200"
    assert (head.poll(), worker.poll()) == (None, None)


def test_a_link_down_for_longer_than_the_execution_timeout_ends_the_head_only(linked: Lab) -> None:
    head, worker = linked.start_pair(VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS="1")
    linked.wait_ready()
    ip("-n", WORKER, "link", "set", "bond0", "down")
    assert status(chat(linked)) == "500"
    assert head.wait(20) == 0
    assert linked.says(0, "TimeoutError: RPC call to execute_model timed out.")
    ip("-n", WORKER, "link", "set", "bond0", "up")
    assert worker.poll() is None
    assert "VLLM::Worker_TP1" in linked.processes()


def test_a_new_pair_starts_beside_a_stale_worker(linked: Lab) -> None:
    head, stale = linked.start_pair()
    linked.wait_ready()
    head.terminate()
    head.wait(20)
    linked.start(0, *linked.rank_arguments(0))
    linked.start(1, *linked.rank_arguments(1))
    wait_for(linked.ready)
    assert status(chat(linked)) == "200"
    assert stale.poll() is None
