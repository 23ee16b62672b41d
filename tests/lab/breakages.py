"""What schedules break: every fault that the lab can make, under one name, with the way back.

All of them may be made while others last: where there is nothing to break any more (a process that is dead already, a
node that is off), that is said and nothing happens.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import faults
from .host import LabError
from .pair import ENDPOINT_PORT, NODES, Pair
from .places import link_address
from .schedule import Kind
from .stranger import PORT as DAEMON_PORT

Change = Callable[[Pair, str], None]

CONTAINER = "vllm_ds4"  # of both recipes
MODELS = "/home/milo/models"
STATE = "/var/lib/sparkd"
POWER = {node: threading.RLock() for node in NODES}  # two hands on one switch would wait for each other's boot


@dataclass(frozen=True)
class Breakage:
    make: Change
    mend: Change | None = None  # None: nothing to mend
    nodes: tuple[str, ...] = NODES
    weight: float = 1.0
    simulated: bool = False  # only the simulated engine can do it
    lives: int = 0  # new lives of the daemon on this node that it explains
    keeps_daemon_out: bool = False  # as many as systemd begins while it lasts


def nothing(pair: Pair, node: str) -> None:
    """Mends what mends itself."""


def sh(script: str, *, timeout_s: float = 60) -> Change:
    def change(pair: Pair, node: str) -> None:
        pair.lab.node(node).run(f"set -eu\ncontainer={CONTAINER}\n{script}", timeout_s=timeout_s)

    return change


def kill(what: str) -> Change:
    """SIGKILL to one of root's engine processes: beside them lives somebody else's, with the title of a rank."""
    title = {"top": "/vllm serve ", "rank": "VLLM::Worker", "core": "VLLM::EngineCore"}[what]
    found = f"ps -U 0 -o pid=,args= | grep -F '{title}' | grep -v -e 'docker exec' -e grep | awk '{{print $1; exit}}'"
    return sh(f'pid=$({found}); test -n "$pid" || {{ echo nothing to kill >&2; exit 1; }}; kill -9 $pid')


def lab_fault(name: str, on: bool) -> Change:
    def change(pair: Pair, node: str) -> None:
        pair.lab.fault(node, name, on)

    return change


def switched(change: Callable[[Pair, str], None]) -> Change:
    """Power is one hand's business at a time."""

    def alone(pair: Pair, node: str) -> None:
        with POWER[node]:
            change(pair, node)

    return alone


def _reboot(pair: Pair, node: str) -> None:
    pair.lab.node(node).reboot()


def _hard_reboot(pair: Pair, node: str) -> None:
    pair.lab.node(node).reboot(hard=True)


def _power_cut(pair: Pair, node: str) -> None:
    pair.lab.node(node).power_cut()


def _power_on(pair: Pair, node: str) -> None:
    pair.lab.node(node).power_on()


def _link(carrier: bool) -> Change:
    def change(pair: Pair, node: str) -> None:
        pair.lab.link_up() if carrier else pair.lab.link_down()

    return change


def _flapping(pair: Pair, node: str) -> None:
    for _ in range(12):
        pair.lab.link_down()
        time.sleep(0.8)
        pair.lab.link_up()
        time.sleep(0.8)


def _peer(node: str) -> str:
    return NODES[1 - NODES.index(node)]


def _neighbour(how: str, what: str = "") -> Change:
    """What this node believes of where the other one is to be found on the wire."""

    def change(pair: Pair, node: str) -> None:
        pair.lab.node(node).run(f"ip neigh {how} {link_address(_peer(node))} {what} dev bond0", check=how != "del")

    return change


def _peers_address(how: str) -> Change:
    def change(pair: Pair, node: str) -> None:
        command = f"ip address {how} {link_address(_peer(node))}/24 dev bond0"
        pair.lab.node(node).run(command, check=how != "del")

    return change


def _state(spoil: str) -> Change:
    """The file is read at a start only: the daemon is killed before, and starts on what is left."""
    return sh(f"systemctl kill -s KILL --kill-who=main sparkd || :\n{spoil}")


def _etc(name: str, spoil: str) -> Change:
    """Changed while nobody looks, found at the next start of the daemon."""
    file = f"/etc/sparkd/{name}"
    return _state(f"test -e {file}.away || cp -a {file} {file}.away\n{spoil} {file}")


def _limited(setting: str) -> Change:
    """A daemon that begins with less than it needs."""
    return sh(f"""mkdir -p /run/systemd/system/sparkd.service.d
printf '[Service]\\n{setting}\\n' >/run/systemd/system/sparkd.service.d/lab-limits.conf
systemctl daemon-reload; systemctl kill -s KILL --kill-who=main sparkd""")


def _address_back(pair: Pair, node: str) -> None:
    pair.lab.node(node).run(f"ip address replace {link_address(node)}/24 dev bond0")


ETC_BACK = "cd /etc/sparkd; for f in *.away; do test ! -e $f || { mv $f ${f%.away}; systemctl restart sparkd; }; done"
SHIMS_GO_ON = "pkill -U 0 -CONT -f containerd-shim || :"
OTHER_KEY = "head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n' >"
UNTAGGED = """image=$(docker inspect -f '{{.Config.Image}}' $container)
docker tag $image lab-kept; echo $image >/var/lib/sparkd-lab/untagged; docker rmi --no-prune $image"""
TAGGED = "cd /var/lib/sparkd-lab; test ! -e untagged || { docker tag lab-kept $(cat untagged); rm untagged; }"
PORT_CUT = "iptables -w -I INPUT -p tcp --dport {0} -j DROP"
PORT_OPEN = "while iptables -w -D INPUT -p tcp --dport {0} -j DROP 2>/dev/null; do :; done"
PORT_REFUSED = "iptables -w -I INPUT -p tcp --dport {0} -j REJECT --reject-with tcp-reset"
PORT_TAKES = "while iptables -w -D INPUT -p tcp --dport {0} -j REJECT --reject-with tcp-reset 2>/dev/null; do :; done"
PORT_FREE = "systemctl stop lab-port-taken 2>/dev/null || :"
PORT_TAKEN = f"""systemd-run --collect --quiet --unit=lab-port-taken /usr/bin/python3 -c '
import socket, time
while True:
    try:
        s = socket.create_server(("", {ENDPOINT_PORT})); break
    except OSError: time.sleep(0.05)
time.sleep(600)'"""

# Of the same name, made by somebody else: nothing that sparkd may remove.
CONTAINER_OTHER = """image=$(docker inspect -f '{{.Config.Image}}' $container); docker rm -f $container
docker run -d --name $container --label lab-other= --entrypoint /bin/sleep $image 3600"""
CONTAINER_GONE = "docker ps -aqf label=lab-other | xargs -r docker rm -f"
UNIT_DROP_IN = "/run/systemd/system/sparkd-engine.service.d/lab-broken.conf"
UNIT_BROKEN = f"""mkdir -p $(dirname {UNIT_DROP_IN}); printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >{UNIT_DROP_IN}
systemctl daemon-reload"""
UNIT_WHOLE = f"test ! -e {UNIT_DROP_IN} || {{ rm {UNIT_DROP_IN}; systemctl daemon-reload; }}"
LIMITS_BACK = """file=/run/systemd/system/sparkd.service.d/lab-limits.conf; test ! -e $file || {
rm $file; systemctl daemon-reload; systemctl restart sparkd; }"""
PROGRAM_BACK = "test ! -e /opt/sparkd.away || { mv /opt/sparkd.away /opt/sparkd; systemctl restart sparkd; }"
DISTURBER = "systemctl stop lab-disturber 2>/dev/null || :"
# A tmpfs is full when it is made as small as what lies in it.
NO_ROOM = "mount -o remount,size=$(df --output=used -k {0} | tail -1)k {0}"
ROOM = "mount -o remount,size=2g {0}"

# The engines' own connections alone: the daemons go on hearing each other.
ENGINES = f"INPUT -i bond0 -p tcp -m multiport ! --ports {DAEMON_PORT}"
ENGINES_CUT = f"iptables -w -I {ENGINES} -j DROP"
ENGINES_OPEN = f"while iptables -w -D {ENGINES} -j DROP 2>/dev/null; do :; done"
# More than it computes at once, of clients without patience: each asks, goes away, and comes again.
CROWD = f"""systemd-run --collect --quiet --unit=lab-crowd bash -c 'for i in $(seq 60); do while :; do
curl -s -m 5 -o /dev/null -d "{{\\"model\\": \\"deepseek-v4-flash\\", \\"prompt\\": \\"count\\", \\"max_tokens\\": 200}}" \
-H "Content-Type: application/json" http://$(hostname -I | tr " " "\\n" | grep ^192):{ENDPOINT_PORT}/v1/completions || sleep 0.2
done & done; wait'"""
NOBODY = "systemctl stop lab-crowd 2>/dev/null || :"
# The first of many shards: weights-away takes the last, and each puts back its own.
SHARD_CUT = f"""f=$(find {MODELS} -maxdepth 2 -name '*.safetensors' | sort | head -1)
test -e "$f.whole" || cp -a "$f" "$f.whole"; truncate -s -1 "$f\""""
SHARD_WHOLE = f"for f in $(find {MODELS} -maxdepth 2 -name '*.whole'); do mv \"$f\" \"${{f%.whole}}\"; done"

WEIGHTS_AWAY = f'set -- $(find {MODELS} -maxdepth 2 -name \'*.safetensors\' | sort | tail -1); mv "$1" "$1.away"'
WEIGHTS_BACK = f'for f in $(find {MODELS} -maxdepth 2 -name \'*.away\'); do mv "$f" "${{f%.away}}"; done'

BREAKAGES: dict[str, Breakage] = {
    # the engine
    "kill-top": Breakage(kill("top"), weight=2),
    "kill-rank": Breakage(kill("rank"), weight=2),
    "kill-core": Breakage(kill("core"), nodes=("spark1",)),
    "engine-stopped": Breakage(
        sh("p=$(pgrep -U 0 -o '^VLLM::Worker') && kill -STOP $p"), sh("pkill -U 0 -CONT '^VLLM::Worker' || :")
    ),
    "engine-hup": Breakage(sh("pkill -U 0 -HUP -f '/vllm serve '"), weight=0.5),
    # the container and Docker
    "container-restart": Breakage(sh("docker restart -t 2 $container")),
    "container-stop": Breakage(sh("docker stop -t 2 $container")),
    "container-kill": Breakage(sh("docker kill $container")),
    "container-rm": Breakage(sh("docker rm -f $container")),
    "container-paused": Breakage(sh("docker pause $container"), sh("docker unpause $container 2>/dev/null || :")),
    "container-shim-kill": Breakage(
        sh("kill -9 $(pgrep -U 0 -f 'containerd-shim.* -id '$(docker inspect -f '{{.Id}}' $container))")
    ),
    "containerd-kill": Breakage(sh("systemctl kill -s KILL --kill-who=main containerd")),
    "containerd-kill-all": Breakage(sh("systemctl kill -s KILL containerd"), weight=0.5),
    "container-renamed": Breakage(
        sh("docker rename $container lab-renamed"), sh("docker rm -f lab-renamed 2>/dev/null || :"), weight=0.5
    ),
    "container-other": Breakage(sh(CONTAINER_OTHER), sh(CONTAINER_GONE), weight=0.5),
    "script-lost": Breakage(sh("docker exec $container bash -c 'rm -f /workspace/*.sh'"), weight=0.5),
    "container-starved": Breakage(
        sh("docker update --memory 32m --memory-swap 32m $container"),
        sh("docker update --memory 16g --memory-swap 16g $container || :"),
        weight=0.5,
    ),
    # Docker itself answers a greeting meanwhile.
    "containerd-hung": Breakage(
        sh("systemctl kill -s STOP --kill-who=main containerd"), sh("systemctl kill -s CONT --kill-who=main containerd")
    ),
    "container-shim-hung": Breakage(sh("kill -STOP $(pgrep -U 0 -f containerd-shim)"), sh(SHIMS_GO_ON)),
    "image-untagged": Breakage(sh(UNTAGGED), sh(TAGGED), weight=0.5),
    "docker-socket-lost": Breakage(
        sh("rm -f /run/docker.sock"), sh("systemctl restart docker.socket docker"), weight=0.5
    ),
    "docker-restart": Breakage(sh("systemctl restart docker")),
    "docker-kill": Breakage(sh("systemctl kill -s KILL docker")),
    "docker-hung": Breakage(lab_fault("docker-hung", True), lab_fault("docker-hung", False)),
    "docker-down": Breakage(lab_fault("docker-down", True), lab_fault("docker-down", False)),
    # sparkd
    "sparkd-kill": Breakage(sh("systemctl kill -s KILL --kill-who=main sparkd"), lives=1, weight=2),
    "sparkd-restart": Breakage(sh("systemctl restart sparkd"), lives=1),
    "sparkd-down": Breakage(sh("systemctl stop sparkd"), sh("systemctl start sparkd"), lives=1),
    "sparkd-stopped": Breakage(
        sh("systemctl kill -s STOP --kill-who=main sparkd"),
        sh("systemctl kill -s CONT --kill-who=main sparkd"),
        lives=1,  # the watchdog
    ),
    **{
        f"sparkd-{signal.lower()}": Breakage(
            sh(f"systemctl kill -s {signal} --kill-who=main sparkd"), lives=1, weight=0.3
        )
        for signal in ("TERM", "HUP", "INT", "SEGV", "USR1")
    },
    "sparkd-starved": Breakage(
        _limited("MemoryMax=24M"),
        sh(LIMITS_BACK),
        keeps_daemon_out=True,
        weight=0.5,
    ),
    "sparkd-no-files": Breakage(_limited("LimitNOFILE=14"), sh(LIMITS_BACK), keeps_daemon_out=True, weight=0.5),
    "program-away": Breakage(
        sh("test -e /opt/sparkd.away || mv /opt/sparkd /opt/sparkd.away"),
        sh(PROGRAM_BACK),
        keeps_daemon_out=True,
        weight=0.5,
    ),
    "engine-unit-stopped": Breakage(sh("systemctl stop sparkd-engine")),
    "engine-unit-broken": Breakage(sh(UNIT_BROKEN), sh(UNIT_WHOLE), weight=0.5),
    "engine-unit-killed": Breakage(sh("systemctl kill -s KILL sparkd-engine")),
    "journald-restart": Breakage(sh("systemctl restart systemd-journald"), weight=0.5),
    "journald-kill": Breakage(sh("systemctl kill -s KILL systemd-journald"), weight=0.5),
    "systemd-reexec": Breakage(sh("systemctl daemon-reexec"), weight=0.5),
    "journald-hung": Breakage(
        sh("systemctl kill -s STOP systemd-journald"), sh("systemctl kill -s CONT systemd-journald"), weight=0.5
    ),
    "systemd-reload": Breakage(sh("systemctl daemon-reload"), weight=0.5),
    "dbus-restart": Breakage(sh("systemctl restart dbus")),
    "dbus-down": Breakage(sh("systemctl stop dbus.socket dbus"), sh("systemctl start dbus.socket dbus"), weight=0.5),
    "dbus-hung": Breakage(sh("systemctl kill -s STOP dbus"), sh("systemctl kill -s CONT dbus"), weight=0.5),
    "state-lost": Breakage(_state(f"rm -f {STATE}/state.json"), lives=1),
    "state-emptied": Breakage(_state(f": >{STATE}/state.json"), lives=1),
    "state-truncated": Breakage(_state(f"truncate -s 100 {STATE}/state.json"), lives=1),
    "state-garbage": Breakage(_state(f"head -c 4096 /dev/urandom >{STATE}/state.json"), lives=1, weight=0.5),
    "state-directory": Breakage(
        _state(f"rm -f {STATE}/state.json; mkdir -p {STATE}/state.json/x"), lives=1, weight=0.5
    ),
    "state-others": Breakage(_state(f"chown -R nobody {STATE}"), lives=1, weight=0.5),
    "events-directory": Breakage(
        _state(f"rm -f {STATE}/events.jsonl; mkdir -p {STATE}/events.jsonl"),
        sh(f"rmdir {STATE}/events.jsonl 2>/dev/null || :"),
        lives=1,
        weight=0.5,
    ),
    "plan-lost": Breakage(_state(f"rm -f {STATE}/plan.json"), lives=1),
    "all-state-lost": Breakage(_state(f"rm -rf {STATE}/*"), lives=1),
    "runtime-lost": Breakage(sh("rm -rf /run/sparkd/*"), weight=0.5),
    "engine-logs-lost": Breakage(sh("rm -rf /var/log/sparkd/engine"), weight=0.5),
    **{  # with the directory itself, which only a fresh start of the daemon gives back
        f"{name}-removed": Breakage(sh(f"rm -rf {directory}"), lives=1, weight=0.5)
        for name, directory in (("state", STATE), ("runtime", "/run/sparkd"), ("logs", "/var/log/sparkd"))
    },
    "key-lost": Breakage(_etc("cluster.key", "rm -f"), sh(ETC_BACK), keeps_daemon_out=True, weight=0.5),
    "key-other": Breakage(_etc("cluster.key", OTHER_KEY), sh(ETC_BACK), lives=2, weight=0.5),
    "configuration-broken": Breakage(
        _etc("sparkd.yaml", "truncate -s 300"), sh(ETC_BACK), keeps_daemon_out=True, weight=0.5
    ),
    # the node
    "reboot": Breakage(switched(_reboot), lives=1),
    "hard-reboot": Breakage(switched(_hard_reboot), lives=1),
    "power-cut": Breakage(switched(_power_cut), switched(_power_on), lives=1, weight=2),
    "frozen": Breakage(lab_fault("frozen", True), lab_fault("frozen", False), lives=1),  # the watchdog
    "disk-full": Breakage(lab_fault("disk-full", True), lab_fault("disk-full", False), lives=1),
    "log-disk-full": Breakage(lab_fault("log-disk-full", True), lab_fault("log-disk-full", False), lives=1),
    "run-full": Breakage(sh(NO_ROOM.format("/run")), sh(ROOM.format("/run")), keeps_daemon_out=True, weight=0.5),
    "shm-full": Breakage(sh(NO_ROOM.format("/dev/shm")), sh(ROOM.format("/dev/shm")), weight=0.5),
    "cores-busy": Breakage(
        sh(
            "systemd-run --collect -q --unit=lab-disturber bash -c 'for i in 1 2 3 4; do while :; do :; done & done; wait'"
        ),
        sh(DISTURBER),
        weight=0.5,
    ),
    "hostname-changed": Breakage(sh("hostname stranger"), sh("hostname $(cat /etc/hostname)"), weight=0.5),
    # For sparkd alone, which reads them as its drop-ins let it: a life of it when it begins, another when it ends.
    "clock-ahead": Breakage(lab_fault("clock-ahead", True), lab_fault("clock-ahead", False), lives=2),
    "clock-behind": Breakage(lab_fault("clock-behind", True), lab_fault("clock-behind", False), lives=2),
    "memory-short": Breakage(lab_fault("memory-short", True), lab_fault("memory-short", False), lives=2),
    "stale-worker": Breakage(lab_fault("stale-worker", True), lab_fault("stale-worker", False)),
    "shm-leftovers": Breakage(lab_fault("shm-leftovers", True), lab_fault("shm-leftovers", False)),
    "weights-away": Breakage(sh(WEIGHTS_AWAY), sh(WEIGHTS_BACK), weight=0.5),
    "shard-cut": Breakage(sh(SHARD_CUT), sh(SHARD_WHOLE), simulated=True, weight=0.5),
    # the link
    "link-down": Breakage(_link(False), _link(True), weight=2),
    **{
        name: Breakage(lab_fault(name, True), lab_fault(name, False))
        for name in ("black-hole", "one-way", "loss", "mtu-mismatch", "no-jumbo-path", "lan-down")
    },
    "address-lost": Breakage(sh("ip address flush dev bond0"), _address_back),
    # A daemon that begins there is told that this machine is two nodes of the cluster.
    "address-twice": Breakage(_peers_address("add"), _peers_address("del"), keeps_daemon_out=True, weight=0.5),
    "neighbour-wrong": Breakage(
        _neighbour("replace", "lladdr 02:00:00:00:00:99 nud permanent"), _neighbour("del"), weight=0.5
    ),
    "link-slow": Breakage(
        sh("tc qdisc replace dev bond0 root tbf rate 128kbit burst 10kb latency 2s"),
        sh("tc qdisc del dev bond0 root 2>/dev/null || :"),
        weight=0.5,
    ),
    "link-flapping": Breakage(_flapping, weight=0.5),
    "engines-cut": Breakage(sh(ENGINES_CUT), sh(ENGINES_OPEN)),
    "crowd": Breakage(sh(CROWD), sh(NOBODY), nodes=NODES[:1], weight=0.5),
    "daemons-refused": Breakage(sh(PORT_REFUSED.format(DAEMON_PORT)), sh(PORT_TAKES.format(DAEMON_PORT)), weight=0.5),
    "daemons-cut": Breakage(sh(PORT_CUT.format(DAEMON_PORT)), sh(PORT_OPEN.format(DAEMON_PORT))),
    "endpoint-cut": Breakage(sh(PORT_CUT.format(ENDPOINT_PORT)), sh(PORT_OPEN.format(ENDPOINT_PORT)), nodes=NODES[:1]),
    "port-taken": Breakage(sh(PORT_TAKEN), sh(PORT_FREE), nodes=NODES[:1], weight=0.5),
    # the operator, at a bad moment
    "operator-stop": Breakage(sh("sparkd stop"), sh("sparkd start")),
    "operator-restart": Breakage(sh("sparkd restart")),
    "operator-start": Breakage(sh("sparkd start")),
    "operator-clean": Breakage(sh("sparkd clean")),
    # what the simulated engine can be made to do
    **{
        name: Breakage(lab_fault(name, True), lab_fault(name, False), simulated=True, weight=0.5)
        for name in faults.engine_faults() or {}
    },
}


# Their ways back do nothing where there is nothing to mend.
MENDED_ANYWAY = (
    *("weights-away", "image-untagged", "port-taken", "key-lost", "container-renamed", "container-other", "container-starved"),
    *("sparkd-no-files", "program-away", "run-full", "shm-full", "cores-busy", "hostname-changed"),
    *("address-lost", "address-twice", "neighbour-wrong", "link-slow", "daemons-refused", "daemons-cut", "endpoint-cut"),
    *("journald-hung", "dbus-down", "dbus-hung", "events-directory", "engine-unit-broken", "shard-cut", "engines-cut", "crowd"),
)


def catalogue(*, real_engine: bool) -> dict[str, Breakage]:
    return {name: breakage for name, breakage in BREAKAGES.items() if not (real_engine and breakage.simulated)}


def kinds(breakages: dict[str, Breakage]) -> dict[str, Kind]:
    """What a schedule is drawn from."""
    return {
        name: Kind(lasting=breakage.mend is not None, nodes=breakage.nodes, weight=breakage.weight)
        for name, breakage in breakages.items()
    }


def mend_everything(pair: Pair) -> None:
    """Whatever a schedule has left: both nodes on, every fault gone, Docker and sparkd running. Raises LabError."""
    for node in NODES:
        with POWER[node]:
            pair.lab.node(node).group.freeze(False)
            pair.lab.node(node).power_on()
    pair.lab.mend()
    for node in NODES:
        for change in (
            sh(f"systemctl kill -s CONT containerd docker; {SHIMS_GO_ON}; pkill -U 0 -CONT '^VLLM::' || :"),
            sh("systemctl start docker.socket docker"),
            sh("docker unpause $container 2>/dev/null || :"),
            *(mend for name in MENDED_ANYWAY if (mend := BREAKAGES[name].mend)),
            sh("systemctl kill -s CONT --kill-who=main sparkd || :"),
            sh("systemctl start --no-block sparkd"),
        ):
            with contextlib.suppress(LabError):
                change(pair, node)
