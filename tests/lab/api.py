"""The lab for tests and for `scripts/lab` alike.

    lab = Lab()
    lab.up()
    lab.node("spark1").run(["systemctl", "start", "sparkd"])
    lab.node("spark2").power_cut()
    lab.client(["curl", "-s", "http://192.168.77.1:8000/v1/models"])
    lab.down()

Two nodes, each a real systemd and a real Docker Engine; the vLLM in their container image is a simulation.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import base as layers
from . import config, faults, network
from .cgroups import Group
from .container_image import Image
from .container_image import build as build_image
from .host import LabError, locked, reserved, run, say
from .machine import ENVIRONMENT, WHEELS, Node
from .places import CHECKOUT, LINK_MTU, NODES, Places

SOURCE = "/srv/sparkd-src"  # the checkout, in a node
NOT_COPIED = {
    ".git",
    "__pycache__",
    ".venv",
    "venv",
    "build",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}


class Lab:
    def __init__(self, places: Places | None = None) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab needs root")
        self.places = places or Places.of_environment()
        self.nodes = [Node(self.places, name) for name in NODES]

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabError(f"{name}: no such node; there are {' and '.join(NODES)}")

    # -- the whole lab -------------------------------------------------------------------------------------------

    def build(self) -> tuple[layers.Base, Image]:
        """What nodes and containers are made from; the cached parts are made where they are missing."""
        base = layers.build(self.places)
        return base, self.image(base)

    def image(self, base: layers.Base) -> Image:
        """What containers are made from. Raises LabError."""
        return build_image(self.places, base.debian)

    def configuration(self) -> dict[str, str]:
        """What nodes have in /etc/sparkd: path below it, and text. Raises LabError."""
        return config.files()

    def up(self) -> None:
        """Both nodes on and well, with this checkout's sparkd installed and not started.

        In a lab that is up already, sparkd, its configuration and the image are brought up to date, faults are mended,
        nodes switched on; services that run go on running. What a crashed run has left is removed first.
        """
        base, image = self.build()
        with locked(self.places.lock):
            if not self._is_usable(base):
                self._down()
                self._create(base)
            network.up(self.places)
            self.mend()
            self._together(lambda node: self._furnish(node, image))

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """This lab, up, for whoever breaks it and expects nobody else to. Raises LabError."""
        with reserved(self.places.used, f"the lab {self.places.name!r} (SPARKD_LAB_NAME={self.places.name}2 is another one)"):
            self.up()
            yield

    def mend(self) -> None:
        """Both nodes on, every fault gone, the cable between them as it was. Raises LabError."""
        self._together(Node.power_on)
        for node in self.nodes:
            faults.mend_all(node)
        self.link_up()
        self.link_mtu(LINK_MTU)

    def down(self) -> None:
        """Remove all of the lab but its cache; also what a crashed run has left. Raises LabError."""
        with locked(self.places.lock):
            self._down()

    def _is_usable(self, base: layers.Base) -> bool:
        """Whether a lab made from `base` stands here, its records whole."""
        wanted = ":".join(str(layer) for layer in reversed(base.layers))
        if not (self.places.state / "complete").exists() or not network.exists(self.places):
            return False
        return all(
            (node.home / "layers").read_text() == wanted and (node.is_on() or not node.group.pids())
            for node in self.nodes
        )

    def _create(self, base: layers.Base) -> None:
        self.places.state.mkdir(parents=True)
        key = self.places.state / "cluster.key"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32) + "\n")
        for node in self.nodes:
            node.create(base)
        network.up(self.places)
        (self.places.state / "complete").touch()

    def _down(self) -> None:
        self._together(Node.destroy)
        Group(self.places.prefix).kill()
        Group(self.places.prefix).remove()
        network.down(self.places)
        if self.places.state.exists():
            shutil.rmtree(self.places.state)  # nothing is mounted below: that lived in the supervisors' namespaces
            if not any(self.places.state.parent.iterdir()):
                self.places.state.parent.rmdir()

    def _together(self, action: Callable[[Node], None]) -> None:
        """On all nodes at once; the first failure is raised when all have ended."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            for future in [pool.submit(action, node) for node in self.nodes]:
                future.result()

    # -- what up() puts into a running node ----------------------------------------------------------------------

    def _furnish(self, node: Node, image: Image) -> None:
        self._load_image(node, image)
        self._copy_checkout(node)
        self._configure(node)
        self._install(node)

    def _load_image(self, node: Node, image: Image) -> None:
        present = node.run(["docker", "image", "inspect", "--format", "{{.Id}}", image.reference], check=False)
        if present.stdout.strip() == image.id:
            return
        argv = node.entered(["docker", "load", "--quiet"])
        with subprocess.Popen(
            argv, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as load:
            assert load.stdin and load.stdout
            try:
                image.write(load.stdin)
            except BrokenPipeError:
                pass  # what it said is below
            finally:
                load.stdin.close()
            said = load.stdout.read().decode(errors="replace").strip()
        if load.returncode != 0:
            raise LabError(f"{node.name}: docker load failed: {said}")

    def _copy_checkout(self, node: Node) -> None:
        """The checkout as it is now, whole, so that a lab does not change while somebody edits."""
        node.run(["rm", "-rf", SOURCE])
        node.run(["mkdir", "-p", SOURCE])
        argv = node.entered(["tar", "--extract", "--no-same-owner", f"--directory={SOURCE}"])
        with subprocess.Popen(argv, env=ENVIRONMENT, stdin=subprocess.PIPE) as extract:
            assert extract.stdin
            with tarfile.open(fileobj=extract.stdin, mode="w|") as archive:
                for path in _worth_copying(CHECKOUT):
                    archive.add(path, str(path.relative_to(CHECKOUT)), recursive=False)
        if extract.returncode != 0:
            raise LabError(f"{node.name}: the checkout could not be copied to {SOURCE}")

    def _configure(self, node: Node) -> None:
        node.run(["rm", "-rf", "/etc/sparkd"])
        for name, text in self.configuration().items():
            node.write(f"/etc/sparkd/{name}", text)
        node.write("/etc/sparkd/cluster.key", (self.places.state / "cluster.key").read_text(), mode=0o600)

    def _install(self, node: Node) -> None:
        if not (CHECKOUT / "scripts/install").exists():
            say(f"{node.name}: this checkout has no scripts/install yet; sparkd is not installed")
            return
        install = [
            f"{SOURCE}/scripts/install",
            "--wheels",
            WHEELS,
            "--config",
            "/etc/sparkd",
            "--no-apt",
        ]
        node.run(install, timeout_s=300)

    def furnish(self, node: str, *, image: bool) -> None:
        """Set up a running node that has nothing of ours, as for the first time: with the image of the container or not."""
        base = layers.build(self.places)
        if image:
            self._load_image(self.node(node), self.image(base))
        self._copy_checkout(self.node(node))
        self._configure(self.node(node))
        self._install(self.node(node))

    # -- around the nodes ----------------------------------------------------------------------------------------

    def client(self, argv: list[str], *, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command where clients are: at the far end of the LAN. Raises LabError on failure unless told not to."""
        return run(network.entered(self.places, network.LAN, argv), timeout_s=timeout_s, check=check)

    def link_up(self) -> None:
        network.set_link(self.places, carrier=True)

    def link_down(self) -> None:
        """Pull the cable between the nodes."""
        network.set_link(self.places, carrier=False)

    def link_mtu(self, mtu: int) -> None:
        network.set_mtu(self.places, mtu)

    def fault(self, node: str, name: str, on: bool) -> None:
        faults.switch(self.node(node), name, on)


def _worth_copying(directory: Path) -> Iterable[Path]:
    for path in sorted(directory.iterdir()):
        if path.name in NOT_COPIED or path.name.endswith(".egg-info"):
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _worth_copying(path)
