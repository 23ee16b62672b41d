"""Ports: real sockets, and who holds them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkd.host.ports import can_bind, listeners
from sparkd.model.errors import SparkdError

HOLDER = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(300)"


def test_a_listener_is_seen_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = listeners([port])
        assert (found.port, found.address, found.pids) == (port, "127.0.0.1", (os.getpid(),))
        assert found.inode == os.fstat(server.fileno()).st_ino
        assert port in [one.port for one in listeners()]
    assert listeners([port]) == []


def test_a_titled_holder_is_called_by_its_title() -> None:
    with _holder("VLLM::Worker_TP0") as (pid, port):
        (found,) = listeners([port])
        assert (found.pids, found.names) == ((pid,), ("VLLM::Worker_TP0",))


def test_a_socket_shared_by_two_processes_names_both() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = subprocess.Popen(["sleep", "300"], pass_fds=[server.fileno()])
        try:
            (found,) = listeners([server.getsockname()[1]])
            assert set(found.pids) == {os.getpid(), child.pid}
            assert dict(zip(found.pids, found.names, strict=True))[child.pid] == "sleep"
        finally:
            child.kill()
            child.wait()


def test_ipv6(tmp_path: Path) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with server:
        (found,) = listeners([server.getsockname()[1]])
        assert found.address == "::1" and found.pids == (os.getpid(),)
        assert not can_bind(found.port, "::1")


def test_a_listening_port_cannot_be_bound() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert not can_bind(port) and not can_bind(port, "127.0.0.1")
    assert can_bind(port)


def test_a_port_that_is_bound_and_does_not_listen_yet_is_taken() -> None:
    """vLLM binds its API port so, with SO_REUSEADDR, minutes before it listens."""
    with socket.socket() as early:
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind(("0.0.0.0", 0))
        port = early.getsockname()[1]
        assert listeners([port]) == []
        assert not can_bind(port)
        early.listen()  # and our question has not got in its way
    assert can_bind(port)


def test_connections_that_linger_do_not_make_a_port_taken() -> None:
    """A server that closes first leaves TIME_WAIT for a minute; an engine binds over it with SO_REUSEADDR."""
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    accepted.close()
    server.close()
    assert client.recv(1) == b""
    client.close()
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    assert can_bind(port, "127.0.0.1")


def test_an_address_of_another_host_has_no_answer() -> None:
    with pytest.raises(SparkdError, match="cannot tell"):
        can_bind(29501, "203.0.113.7")


@contextlib.contextmanager
def _holder(title: str) -> Iterator[tuple[int, int]]:
    holder = subprocess.Popen(
        ["bash", "-c", 'exec -a "$0" "$@"', title, sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout
        yield holder.pid, int(holder.stdout.readline())
    finally:
        holder.kill()
        holder.communicate()
