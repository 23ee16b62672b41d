"""A Docker Engine of the tests' own, as a pytest plugin: its data and socket live in /tmp and end with the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_shell import IMAGE, Engine, shell_image

from sparkd.engine.container import Docker
from sparkd.model.errors import SparkdError

START_MAX_S = 60


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    if os.geteuid() != 0:
        pytest.skip("a Docker Engine needs root")
    if shutil.which("dockerd") is None:
        pytest.skip("dockerd is not installed")
    home = Path(tempfile.mkdtemp(prefix="sparkd-dockerd-", dir="/tmp"))  # short: a socket's path has 107 bytes
    url = f"unix://{home}/docker.sock"
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "dockerd",
                f"--data-root={home}/data",
                f"--exec-root={home}/exec",
                f"--pidfile={home}/pid",
                f"--host={url}",
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--storage-driver=vfs",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_up(Docker(url, timeout_s=5), process, home / "log")
        _import_image(url)
        yield Engine(url, process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
        subprocess.run(["umount", home / "exec/netns/default"], capture_output=True, timeout=10, check=False)
        shutil.rmtree(home, ignore_errors=True)


def _wait_until_up(docker: Docker, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_MAX_S
    while time.monotonic() < deadline:
        try:
            docker.runtimes()
            return
        except SparkdError:
            if process.poll() is not None:
                pytest.skip(f"dockerd cannot run here: {log.read_text(errors='replace').strip().splitlines()[-1]}")
            time.sleep(0.2)
    pytest.fail(f"dockerd did not answer within {START_MAX_S} s")


def _import_image(url: str) -> None:
    from docker import APIClient

    client = APIClient(base_url=url, version="auto", timeout=60)
    repository, tag = IMAGE.split(":")
    client.import_image_from_data(shell_image(), repository=repository, tag=tag)
    client.close()
