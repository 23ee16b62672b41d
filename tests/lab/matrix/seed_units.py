"""The comparison: the two units of the published deployment keep the pair up, as they did for whoever published them.

What they are lies in seed/, word for word. Here stands what the lab changes in them, what a person does around them, and how
the matrix asks what they did. Restart=on-failure and its 30 seconds are theirs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from tests.lab.container_image import REFERENCE
from tests.lab.host import LabError
from tests.lab.matrix import seen
from tests.lab.pair import NODES, Pair, wait_for
from tests.lab.places import lan_address

SEED = Path(__file__).parent / "seed"
CONTAINER = "vllm_ds4"
ROLES = dict(zip(NODES, ("head", "worker"), strict=True))
UNITS = "/etc/systemd/system"
SCRIPTS = "/home/milo/vllm-scripts"  # where they are kept, to be copied into the container
PASSING = ("activating", "deactivating", "reloading")
STARTS_S = 60.0  # what a start of the units takes beside the engine's
ANSWER_MAX_S = 20.0
US_PER_S = 1_000_000


@dataclass(frozen=True)
class Change:
    """What the lab has differently from the published machines. Not finding the pattern is an error."""

    file: str
    pattern: str
    replacement: str


CHANGES = (
    # The lab's LAN has other addresses than the author's.
    Change("vllm-head.sh", r"192\.168\.1\.11$", lan_address("spark1")),
    Change("vllm-worker.sh", r"192\.168\.1\.12$", lan_address("spark2")),
    # Two nodes share one machine's memory; sparkd's recipe has the same share in the lab.
    Change("vllm-head.sh", r"(--gpu-memory-utilization) 0\.90", r"\1 0.10"),
    Change("vllm-worker.sh", r"(--gpu-memory-utilization) 0\.90", r"\1 0.10"),
    # The simulated engine reads its pace and its faults from a directory of the node.
    Change("container.sh", r"^( *)(-v ~/\.cache/flashinfer:\S+ \\)$", r"\1\2\n\1-v /var/lib/sparkd-lab:/lab \\"),
    # The lab's image has another tag; {image} is filled in below.
    Change("container.sh", r"\bghcr\.io/\S+", "{image}"),
    # The lab is root, and its nodes have no sudo.
    Change("container.sh", r"\bsudo ", ""),
    Change("cleanup.sh", r"\bsudo ", ""),
)


def published(file: str, seed: Path = SEED) -> str:
    return (seed / file).read_text()


def adapted(file: str, *, image: str = REFERENCE, seed: Path = SEED) -> str:
    """A published file as the lab runs it. Raises LabError where a change finds nothing to change."""
    text = published(file, seed)
    for change in CHANGES:
        if change.file == file:
            text, count = re.subn(change.pattern, change.replacement, text, flags=re.MULTILINE)
            if not count:
                raise LabError(f"tests/lab/matrix/seed/{file}: nothing here looks like {change.pattern}")
    return text.replace("{image}", image)


def unit(node: str) -> str:
    return f"vllm-ds4-{ROLES[node]}.service"


def first_act(journal: str, since: float) -> float | None:
    """When systemd first did or said something about a unit, in lines of `journalctl --output=json`. Wall clock, seconds."""
    times = [int(json.loads(line)["__REALTIME_TIMESTAMP"]) / US_PER_S for line in journal.splitlines() if line.strip()]
    return min((at for at in times if at >= since), default=None)


def wall_clock(timestamp: str) -> float | None:
    """Seconds, of what `systemctl show --timestamp=us+utc` prints; it prints nothing for what never was."""
    with contextlib.suppress(ValueError):
        return datetime.strptime(timestamp.strip(), "%a %Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC).timestamp()
    return None


class SeedUnits:
    """A keeper (`tests/lab/matrix/case.py`): the published units. sparkd is stopped and disabled between install and remove."""

    name = "units"

    def __init__(self, pair: Pair, *, image: str = REFERENCE, script: Callable[[str], str] | None = None) -> None:
        """`script`: a node's launch script, where the model is not the published one."""
        self.pair, self.image = pair, image
        self.script = script or (lambda node: adapted(f"vllm-{ROLES[node]}.sh"))
        self.up_max_s = pair.serves_max_s + STARTS_S
        self.brought_up: object = None
        self.since = 0.0

    def __enter__(self) -> SeedUnits:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    # --- putting it there, and taking it away ---

    def install(self) -> None:
        """Units and scripts on both nodes, a boot starts them; sparkd is out of the way. Nothing is started."""
        for node in NODES:
            self.pair.lab.node(node).power_on()
            self.pair.run(node, "systemctl disable --now --quiet sparkd")
        for node in NODES:
            self.pair.run(node, "systemctl stop sparkd-engine sparkd-ready", check=False)  # not there on a fresh node
            self.write_files(node)
            self.pair.run(node, f"systemctl daemon-reload; systemctl enable --quiet {unit(node)}")

    def write_files(self, node: str) -> None:
        role, lab_node = ROLES[node], self.pair.lab.node(node)
        lab_node.write(f"{UNITS}/{unit(node)}", published(unit(node)))
        lab_node.write(f"{UNITS}/{unit(node)}.d/override.conf", published(f"vllm-ds4-{role}.override.conf"))
        lab_node.write(f"{SCRIPTS}/vllm-{role}.sh", self.script(node))
        lab_node.write(f"{SCRIPTS}/container.sh", adapted("container.sh", image=self.image))
        lab_node.write(f"{SCRIPTS}/cleanup.sh", adapted("cleanup.sh"))

    def remove(self) -> None:
        """As if it had never been there; sparkd is enabled again, and not started."""
        for node in NODES:
            self.pair.lab.node(node).power_on()
            self.stop(node)
            self.pair.run(
                node, f"systemctl disable --quiet {unit(node)}; systemctl reset-failed {unit(node)}", check=False
            )
            self.pair.run(
                node, f"rm -rf {UNITS}/{unit(node)} {UNITS}/{unit(node)}.d {SCRIPTS}; systemctl daemon-reload"
            )
            self.pair.run(node, "systemctl enable --quiet sparkd")
        self.brought_up = None

    # --- the keeper ---

    def bring_up(self) -> None:
        """What a person does by the published notes: stop, clean up, make the container anew, start both units."""
        self.pair.lab.mend()
        if self.brought_up is not None and self.launch() == self.brought_up and self.settled() and self.answers():
            return
        for node in NODES:
            self.stop(node)
        for node in NODES:
            self.make_container(node)
        for node in reversed(NODES):  # the worker first, as there
            self.pair.run(
                node, f"systemctl reset-failed {unit(node)}; systemctl start --no-block {unit(node)}", check=False
            )
        wait_for("answer from the published units", lambda: self.launch() and self.answers(), max_s=self.up_max_s)
        self.brought_up = self.launch()

    def stop(self, node: str) -> None:
        self.pair.run(node, "systemctl start docker.socket docker", check=False)
        self.pair.run(node, f"systemctl stop {unit(node)}", check=False, timeout_s=150)
        self.pair.run(node, f"bash {SCRIPTS}/cleanup.sh", check=False)  # most of it has nothing to do
        wait_for(f"end of every engine process on {node}", lambda: not self.pair.engine(node), max_s=30)

    def make_container(self, node: str) -> None:
        self.pair.run(node, f"bash -e {SCRIPTS}/container.sh", timeout_s=120)
        script = f"vllm-{ROLES[node]}.sh"
        self.pair.run(node, f"docker cp {SCRIPTS}/{script} {CONTAINER}:/workspace/{script}")

    def answers(self) -> bool:
        with contextlib.suppress(LabError, KeyError, ValueError, TypeError, IndexError):
            return bool(self.pair.chat(timeout_s=ANSWER_MAX_S)["content"])
        return False

    def launch(self) -> object:
        """The processes of both ranks, where all of them live and the endpoint listens."""
        engines = seen.engines(self.pair)
        if not seen.is_whole(engines) or not seen.listens(self.pair.lab.node(NODES[0])):
            return None
        return engines

    def settled(self) -> bool:
        """Neither unit is on its way anywhere; one that waits for its 30 s is."""
        return not any(state.split()[0] in PASSING for state in map(self.state, NODES))

    def noticed_at(self, since: float) -> float | None:
        """When a unit left `active`, or systemd first said a word about one."""
        self.since = since
        acts = [act for node in NODES for act in self.acts(node, since)]
        return min(acts, default=None)

    def acts(self, node: str, since: float) -> Iterator[float]:
        with contextlib.suppress(LabError):
            ask = f"journalctl --output=json --since=@{int(since)} _PID=1 UNIT={unit(node)}"
            if (said := first_act(self.pair.run(node, ask), since)) is not None:
                yield said
            # An end with status 0 is not logged; ExecStop= comes after it, and takes its time.
            if (left := self.left_active(node)) is not None and left >= since:
                yield left

    def left_active(self, node: str) -> float | None:
        """Of this boot, and only the last time."""
        show = f"systemctl show --value --timestamp=us+utc --property=ActiveExitTimestamp {unit(node)}"
        return wall_clock(self.pair.run(node, show))

    def blocked(self) -> None:
        """They never wait for a person, and never tell one what to do."""

    def says(self) -> str:
        return "; ".join(f"{ROLES[node]}: {self.state(node)}" for node in NODES)

    def story(self) -> str:
        """What systemd said of the units since the fault that was last asked about, for a row that is not good."""
        told = []
        for node in NODES:
            with contextlib.suppress(LabError):
                ask = f"journalctl --quiet --output=short-precise --since=@{int(self.since)} _PID=1 UNIT={unit(node)}"
                told.append(self.pair.run(node, ask))
        return "".join(told)

    def state(self, node: str) -> str:
        show = f"systemctl show --property=ActiveState,SubState,Result,NRestarts {unit(node)}"
        try:
            pairs = dict(line.split("=", 1) for line in self.pair.run(node, show).splitlines() if "=" in line)
        except LabError:
            return "off"
        result = "" if pairs.get("Result") == "success" else f", {pairs.get('Result')}"
        return f"{pairs.get('ActiveState')} ({pairs.get('SubState')}{result}, {pairs.get('NRestarts')} restarts)"
