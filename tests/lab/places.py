"""Where a lab keeps its things, and what they are called. Everything follows from its name, so a lab whose
records are lost can still be taken down."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NODES = ("spark1", "spark2")


@dataclass(frozen=True)
class Places:
    """`name` tells labs on one machine apart; `cache` may be shared by all of them."""

    name: str
    state: Path
    cache: Path

    @staticmethod
    def of_environment() -> Places:
        name = os.environ.get("SPARKD_LAB_NAME", "lab")
        state = os.environ.get("SPARKD_LAB_STATE", "/var/lib/sparkd-lab-run")
        return Places(name, Path(state) / name, Path(os.environ.get("SPARKD_LAB_CACHE", "/var/cache/sparkd-lab")))

    def environment(self) -> dict[str, str]:
        """The inverse of `of_environment`, for programs that the lab starts."""
        return {
            "SPARKD_LAB_NAME": self.name,
            "SPARKD_LAB_STATE": str(self.state.parent),
            "SPARKD_LAB_CACHE": str(self.cache),
        }

    @property
    def prefix(self) -> str:
        """Stands before the name of every namespace, cgroup and machine of this lab."""
        return f"sparkd-{self.name}"

    @property
    def lock(self) -> Path:
        return self.cache / f"{self.name}.lock"

    @property
    def used(self) -> Path:
        return self.cache / f"{self.name}.used"

    def namespace(self, what: str) -> str:
        """Network namespace of a node, of the `wire` between them, or of the `lan` with the clients."""
        return f"{self.prefix}-{what}"

    def node(self, name: str) -> Path:
        return self.state / name


def lan_address(node: str) -> str:
    return f"192.168.77.{NODES.index(node) + 1}"


def link_address(node: str) -> str:
    return f"10.0.0.{NODES.index(node) + 1}"


CLIENT_ADDRESS = "192.168.77.254"  # of the LAN's far end, where clients run; the nodes' default route
LINK_MTU = 9000
