"""The commands of `scripts/lab`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from . import faults, network
from .api import Lab
from .host import LabError, Unusable
from .machine import ENVIRONMENT, Node, supervise
from .places import CHECKOUT, NODES, Places, lan_address, link_address
from .real_engine import RealLab

USAGE = """\
The two-node lab: two machines with real systemd and real Docker, joined by a link; the vLLM in it is a simulation.

  scripts/lab up                          build what is missing, boot both nodes, install this checkout's sparkd in both
  scripts/lab down                        remove all of it but the cache
  scripts/lab status                      the nodes, their state, the faults that are on
  scripts/lab exec NODE COMMAND...        run a command in a node (spark1, spark2)
  scripts/lab client COMMAND...           run a command where clients are, on the LAN
  scripts/lab logs NODE [ARGUMENT...]     the node's journal, also of a node that is off; arguments go to journalctl
  scripts/lab reboot NODE                 in good order; returns when it has booted
  scripts/lab power-off NODE              in good order
  scripts/lab power-cut NODE              pull the plug
  scripts/lab power-on NODE               returns when it has booted
  scripts/lab link up|down|mtu N          the cable between the nodes
  scripts/lab fault NODE NAME on|off      break something, or mend it
  scripts/lab faults                      what can be broken
  scripts/lab build                       make the caches only

Environment: SPARKD_LAB_NAME (lab), SPARKD_LAB_CACHE (/var/cache/sparkd-lab), SPARKD_LAB_STATE (/var/lib/sparkd-lab-run),
SPARKD_LAB_ENGINE (simulated; real: vLLM's CPU build with a tiny model, 3 GB are fetched once).
"""
USAGE_ERROR = 64


def main(arguments: Sequence[str]) -> int:
    """One command; its exit status. 64: the command line makes no sense."""
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        print(USAGE, end="")
        return 0 if arguments else USAGE_ERROR
    command, *words = arguments
    try:
        if command not in COMMANDS:
            raise Unusable(f"{command}: no such command")
        if os.geteuid() != 0 and command != "faults":
            become_root(arguments)
        os.umask(0o022)  # nodes are not to inherit what the person is used to
        return COMMANDS[command](words)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        if isinstance(error, Unusable):
            print("`scripts/lab help` lists the commands.", file=sys.stderr)
            return USAGE_ERROR
        return 1
    except KeyboardInterrupt:
        return 130


def become_root(arguments: Sequence[str], script: str = "scripts/lab") -> None:
    """Start again through sudo, the lab's settings kept. Raises LabError where there is none."""
    settings = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("SPARKD_LAB_")]
    try:
        os.execvp("sudo", ["sudo", "env", *settings, str(CHECKOUT / script), *arguments])
    except FileNotFoundError as error:
        raise LabError("the lab needs root, and there is no sudo here: run it as root") from error


def the_lab(places: Places | None = None) -> Lab:
    """The lab that the environment asks for. Raises LabError."""
    match os.environ.get("SPARKD_LAB_ENGINE", "simulated"):
        case "simulated":
            return Lab(places)
        case "real":
            return RealLab(places)
        case other:
            raise Unusable(f"SPARKD_LAB_ENGINE={other}: expected simulated or real")


def expect(words: Sequence[str], usage: str) -> None:
    """Raises Unusable where the words are not as many as `usage` names."""
    if len(words) != len(usage.split()):
        raise Unusable(f"expected: {usage or 'no arguments'}")


def node_of(lab: Lab, words: Sequence[str]) -> Node:
    if not words or words[0] not in NODES:
        raise Unusable(f"expected a node: {' or '.join(NODES)}")
    return lab.node(words[0])


def up(words: Sequence[str]) -> int:
    expect(words, "")
    lab = the_lab()
    lab.up()
    print(table(lab))
    return 0


def down(words: Sequence[str]) -> int:
    expect(words, "")
    the_lab().down()
    return 0


def build(words: Sequence[str]) -> int:
    expect(words, "")
    the_lab().build()
    return 0


def status(words: Sequence[str]) -> int:
    expect(words, "")
    lab = the_lab()
    if not lab.places.state.exists():
        print(f"lab {lab.places.name!r} is down")
        return 1
    print(table(lab))
    return 0


def table(lab: Lab) -> str:
    rows: list[tuple[str, ...]] = [("node", "power", "systemd", "docker", "sparkd", "link", "lan", "faults")]
    for node in lab.nodes:
        state = node.state()
        answers = state not in ("off", "booting") and "frozen" not in faults.active(node)
        units = [node.unit_state(f"{unit}.service") if answers else "-" for unit in ("docker", "sparkd")]
        power = "off" if state == "off" else "on"
        broken = ", ".join(faults.active(node)) or "-"
        rows.append((node.name, power, state, *units, link_address(node.name), lan_address(node.name), broken))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def execute(words: Sequence[str]) -> int:
    lab = the_lab()
    node, command = node_of(lab, words), words[1:]
    if not command:
        raise Unusable("expected: NODE COMMAND...")
    become(node.entered(command), ENVIRONMENT)
    return 0


def client(words: Sequence[str]) -> int:
    if not words:
        raise Unusable("expected: COMMAND...")
    become(network.entered(the_lab().places, network.LAN, list(words)), dict(os.environ))
    return 0


def become(argv: Sequence[str], environment: dict[str, str]) -> None:
    """Replace this process: input, output, signals and exit status are the command's own."""
    sys.stdout.flush()
    os.execvpe(argv[0], list(argv), environment)


def logs(words: Sequence[str]) -> int:
    node = node_of(the_lab(), words)
    journalctl = ["journalctl", "--no-pager", *words[1:]]
    if node.leader() is not None:
        become(node.entered(journalctl), ENVIRONMENT)
    become([*journalctl, f"--directory={node.home}/upper/var/log/journal"], dict(os.environ))
    return 0


def power(action: Callable[[Node], None]) -> Callable[[Sequence[str]], int]:
    def command(words: Sequence[str]) -> int:
        expect(words, "NODE")
        action(node_of(the_lab(), words))
        return 0

    return command


def link(words: Sequence[str]) -> int:
    lab = the_lab()
    match list(words):
        case ["up"]:
            lab.link_up()
        case ["down"]:
            lab.link_down()
        case ["mtu", number] if number.isdecimal():
            lab.link_mtu(int(number))
        case _:
            raise Unusable("expected: up, down, or mtu N")
    return 0


def fault(words: Sequence[str]) -> int:
    expect(words, "NODE NAME on|off")
    node = node_of(the_lab(), words)
    if words[2] not in ("on", "off"):
        raise Unusable("expected: NODE NAME on|off")
    faults.switch(node, words[1], words[2] == "on")
    return 0


def list_faults(words: Sequence[str]) -> int:
    expect(words, "")
    known = faults.catalogue()
    width = max(map(len, known))
    for name, description in known.items():
        print(f"{name:{width}}  {description}")
    return 0


def supervise_node(words: Sequence[str]) -> int:
    return supervise(node_of(the_lab(), words))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "up": up,
    "down": down,
    "build": build,
    "status": status,
    "exec": execute,
    "client": client,
    "logs": logs,
    "reboot": power(Node.reboot),
    "power-off": power(Node.power_off),
    "power-cut": power(Node.power_cut),
    "power-on": power(Node.power_on),
    "link": link,
    "fault": fault,
    "faults": list_faults,
    "_supervise": supervise_node,
}
