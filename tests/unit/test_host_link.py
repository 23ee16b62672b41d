"""The link: a real veth pair between network namespaces that the test makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparkd
from sparkd.host.link import probe_mtu, read_link
from sparkd.host.run import run

CHECKOUT = Path(sparkd.__file__).parent.parent


class Pair:
    """Two namespaces, joined by a veth pair called bond0 on both sides, at 10.77.0.1 and 10.77.0.2."""

    def __init__(self) -> None:
        self._holders = [
            subprocess.Popen(["unshare", "-n", "bash", "-c", "echo; exec sleep 300"], stdout=subprocess.PIPE, text=True)
            for _ in (0, 1)
        ]
        for holder in self._holders:
            assert holder.stdout and holder.stdout.readline() == "\n"
        there = str(self._holders[1].pid)
        self.ip(0, "link", "add", "bond0", "type", "veth", "peer", "name", "bond0", "netns", there)
        for side in (0, 1):
            self.ip(side, "address", "add", f"10.77.0.{side + 1}/24", "dev", "bond0")
            self.ip(side, "link", "set", "bond0", "mtu", "9000", "up")

    def ip(self, side: int, *argv: str) -> None:
        run([*self._inside(side), "ip", *argv], timeout_s=20, check=True)

    def ask(self, side: int, expression: str) -> Any:
        """Evaluates an expression over `link` in a node, as JSON. The node keeps our /sys, as a container may."""
        program = f"import dataclasses, json; from sparkd.host import link; print(json.dumps(dataclasses.asdict({expression})))"
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        inside = [*self._inside(side), sys.executable, "-c", program]
        return json.loads(run(inside, timeout_s=30, check=True, env=environment).stdout)

    def _inside(self, side: int) -> list[str]:
        return ["nsenter", "-n", "-t", str(self._holders[side].pid)]

    def close(self) -> None:
        for holder in self._holders:
            holder.kill()
            holder.communicate()


@pytest.fixture
def pair() -> Iterator[Pair]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    pair = Pair()
    yield pair
    pair.close()


def test_the_state_of_a_link(pair: Pair) -> None:
    state = pair.ask(0, "link.read_link('bond0')")
    assert (state["exists"], state["up"], state["carrier"], state["mtu"]) == (True, True, True, 9000)
    assert state["addresses"][0] == "10.77.0.1"
    pair.ip(1, "link", "set", "bond0", "down")
    for _ in range(50):  # where there is no sysfs, the kernel tells of a lost carrier up to a second later
        state = pair.ask(0, "link.read_link('bond0')")
        if not state["carrier"]:
            break
    assert (state["up"], state["carrier"]) == (True, False)
    assert pair.ask(1, "link.read_link('bond0')")["up"] is False


def test_the_sysfs_of_another_namespace_is_not_believed(pair: Pair) -> None:
    """`ip link add` gives the new link a number that our own /sys has for another interface, or not at all."""
    assert not Path("/sys/class/net/bond0").exists()
    assert pair.ask(0, "link.read_link('bond0')")["carrier_changes"] is None


def test_full_size_packets_pass_or_do_not(pair: Pair) -> None:
    both = pair.ask(0, "link.probe_mtu('10.77.0.2', 9000)")
    assert (both["reached"], both["mtu_ok"]) == (True, True)
    pair.ip(1, "link", "set", "bond0", "mtu", "1500")
    far = pair.ask(0, "link.probe_mtu('10.77.0.2', 9000)")
    assert (far["reached"], far["mtu_ok"]) == (True, False)
    assert "10.77.0.2 answers, but packets of 9000 bytes do not" in far["says"]
    near = pair.ask(1, "link.probe_mtu('10.77.0.1', 9000)")
    assert (near["reached"], near["mtu_ok"]) == (True, False) and "own interface" in near["says"]
    assert pair.ask(0, "link.probe_mtu('10.77.0.2', 1500)")["mtu_ok"] is True


def test_a_silent_peer_says_nothing_about_the_mtu(pair: Pair) -> None:
    silent = pair.ask(0, "link.probe_mtu('10.77.0.9', 9000, timeout_s=0.3)")
    assert (silent["reached"], silent["mtu_ok"]) == (False, None)
    no_route = pair.ask(0, "link.probe_mtu('203.0.113.1', 9000)")
    assert (no_route["reached"], no_route["mtu_ok"]) == (False, None)
    no_source = pair.ask(0, "link.probe_mtu('10.77.0.2', 9000, source='10.99.0.1')")
    assert (no_source["reached"], no_source["mtu_ok"]) == (None, None)


def test_this_host_reaches_itself() -> None:
    state = read_link("lo")
    assert state.exists and state.up and "127.0.0.1" in state.addresses and state.speed_mbps is None
    assert not read_link("no-such-link").exists
    probe = probe_mtu("127.0.0.1", 9000)
    assert probe.mtu_ok is True or probe.mtu_ok is None  # None: this machine lets us ask in no way


def test_an_mtu_that_is_none_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="out of range"):
        probe_mtu("127.0.0.1", 20)
