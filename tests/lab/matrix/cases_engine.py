"""What ends an engine, a container, an agent, a node, or the link between them; and what should come of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.lab.breakages import OTHER_KEY
from tests.lab.config import LIMITS
from tests.lab.matrix import seen
from tests.lab.matrix.case import BOTH, Case, Change, Expect
from tests.lab.pair import NODES, Pair, wait_for

CONTAINER = "vllm_ds4"
CONFIG = "/etc/sparkd/sparkd.yaml"
RELAUNCH_MAX_S = 120.0
SHIPPED_LINK_LOSS_S = 45
STRIKES_MAX_S = 150.0  # a relaunch, and the lab's load_max_s where only that ends it
NODES_AND_BOTH = (*NODES, BOTH)


def nodes_of(node: str) -> tuple[str, ...]:
    return NODES if node == BOTH else (node,)


# --- processes -----------------------------------------------------------------------------------


def signal(what: str, name: str = "KILL") -> Change:
    """A signal to the engine's top process, its rank or its core."""

    def make(pair: Pair, node: str) -> None:
        strike(pair, node, what, name)

    return make


def strike(pair: Pair, node: str, what: str, name: str = "KILL") -> None:
    kind = {"top": seen.TOP, "rank": seen.RANK, "core": seen.CORE}[what]
    for n in nodes_of(node):
        titles = [
            (pid, title) for pid, title in sorted(pair.engine(n).items()) if title.startswith(kind) or kind in title
        ]
        assert titles, f"no {what} of an engine on {n}"
        pair.run(n, f"kill -s {name} {titles[0][0]}")


def command(script: str, *, timeout_s: float = 60) -> Change:
    def make(pair: Pair, node: str) -> None:
        for n in nodes_of(node):
            pair.run(n, script, timeout_s=timeout_s)

    return make


def fault(name: str, on: bool = True) -> Change:
    """One of `scripts/lab faults`."""

    def make(pair: Pair, node: str) -> None:
        for n in nodes_of(node):
            pair.lab.fault(n, name, on)

    return make


def agents(how: str) -> Change:
    """`systemctl HOW sparkd`, and another daemon must be there."""

    def make(pair: Pair, node: str) -> None:
        pids = {n: main_pid(pair, n) for n in nodes_of(node)}
        for n in pids:
            pair.run(n, f"systemctl {how} sparkd")
        for n, pid in pids.items():
            wait_for(f"a new daemon on {n}", lambda n=n, pid=pid: main_pid(pair, n) not in ("0", pid), max_s=30)

    return make


def another_key(pair: Pair, node: str) -> None:
    pair.run(node, f"cd /etc/sparkd; cp -a cluster.key cluster.key.away; {OTHER_KEY} cluster.key")
    agents("restart")(pair, node)


def own_key(pair: Pair, node: str) -> None:
    pair.run(node, "cd /etc/sparkd; mv cluster.key.away cluster.key")
    agents("restart")(pair, node)


def main_pid(pair: Pair, node: str) -> str:
    return pair.run(node, "systemctl show -p MainPID --value sparkd").strip()


# --- nodes ---------------------------------------------------------------------------------------


def reboot(pair: Pair, node: str) -> None:
    with ThreadPoolExecutor() as pool:  # both go down together
        for booted in [pool.submit(pair.lab.node(n).reboot) for n in nodes_of(node)]:
            booted.result()


def power_cut(pair: Pair, node: str) -> None:
    for n in nodes_of(node):
        pair.lab.node(n).power_cut()


def power_on(pair: Pair, node: str) -> None:
    for n in nodes_of(node):
        pair.lab.node(n).start()
    for n in nodes_of(node):
        pair.lab.node(n).wait_booted()


# --- the link ------------------------------------------------------------------------------------


def link_down(pair: Pair, node: str) -> None:
    pair.lab.link_down()


def link_up(pair: Pair, node: str) -> None:
    pair.lab.link_up()


# --- limits --------------------------------------------------------------------------------------


def with_limits(make: Change, **limits: float) -> Change:
    """`make`, where the agents work by other limits than the lab's; they read them when they start, and adopt the engine."""

    def changed(pair: Pair, node: str) -> None:
        _set_limits(pair, limits)
        make(pair, node)

    return changed


def lab_limits(mend: Change, *names: str) -> Change:
    """Undoes `with_limits`."""

    def mended(pair: Pair, node: str) -> None:
        mend(pair, node)
        _set_limits(pair, {name: LIMITS[name] for name in names})

    return mended


def _set_limits(pair: Pair, limits: dict[str, float]) -> None:
    edits = "; ".join(f"s/^  {name}: .*/  {name}: {value:g}/" for name, value in limits.items())
    for n in NODES:
        pair.run(n, f"sed -i '{edits}' {CONFIG} && systemctl restart --no-block sparkd", timeout_s=90)
    for n in NODES:
        wait_for(f"an answer of {n}'s agent", lambda n=n: pair.status(n), max_s=60)


# --- deaths during a start -----------------------------------------------------------------------

# What the head's log says when a launch has come to a phase. Imports: nothing yet, the top process is just there.
PHASES = {
    "imports": "",
    "rendezvous": "distributed_init_method=",
    "weights": "Loading safetensors checkpoint shards:",
    "compile": "Dynamo bytecode transform time",
    "kv-cache": "GPU KV cache size",
    "graphs": "Capturing CUDA graphs",
}


def killed_at(phase: str) -> Change:
    """The engine dies once, and the launch that follows dies as well, in that phase."""

    def make(pair: Pair, node: str) -> None:
        before = _relaunch(pair)
        marker = PHASES[phase]
        if marker:
            wait_for(
                f"{phase} in the log of a new launch",
                lambda: marker in _new_log(pair, "spark1", before),
                max_s=60,
                every_s=0.02,
            )
            strike(pair, node, "rank")
        else:
            wait_for(f"a new top process on {node}", lambda: _fresh_top(pair, node), max_s=60, every_s=0.02)
            strike(pair, node, "top")

    return make


def _relaunch(pair: Pair) -> frozenset[str]:
    """End what serves, as a death does, and wait until it is gone everywhere. Returns the logs of what was before."""
    before = frozenset(name for node in NODES for name in pair.engine_logs(node))
    strike(pair, "spark1", "rank")
    wait_for("the end of the launch", lambda: not any(seen.engines(pair).values()), max_s=60, every_s=0.02)
    return before


def _new_log(pair: Pair, node: str, before: frozenset[str]) -> str:
    """What launches since have said on this node."""
    return "".join(text for name, text in pair.engine_logs(node).items() if name not in before)


def _fresh_top(pair: Pair, node: str) -> bool:
    return any(process.kind == seen.TOP for process in seen.engine(pair.lab.node(node)))


def struck_during_load(name: str, sign: Callable[[Pair, str, frozenset[str]], bool]) -> Change:
    """A fault of the simulated engine that strikes the next launch while it loads weights; made once `sign` shows that it
    has struck."""

    def make(pair: Pair, node: str) -> None:
        pair.lab.fault(node, name, True)
        before = _relaunch(pair)
        wait_for(f"{name} to strike", lambda: sign(pair, node, before), max_s=STRIKES_MAX_S, every_s=0.05)

    return make


def _says_cuda_error(pair: Pair, node: str, before: frozenset[str]) -> bool:
    return "CUDA error" in _new_log(pair, node, before)


def _lost_its_rank(pair: Pair, node: str, before: frozenset[str]) -> bool:
    return "Starting to load model" in _new_log(pair, node, before) and not any(
        process.kind == seen.RANK for process in seen.engine(pair.lab.node(node))
    )


def _hung_and_was_ended(pair: Pair, node: str, before: frozenset[str]) -> bool:
    """It began to load, and somebody ended it: by itself it would never go."""
    return "Starting to load model" in _new_log(pair, node, before) and not seen.engine(pair.lab.node(node))


# --- the cases -----------------------------------------------------------------------------------

ON, AGAIN = Expect.GOES_ON, Expect.SERVES_AGAIN
NETWORK_LOSS_S = 20.0  # longer than the lab's link_loss_max_s of 8 s
again = functools.partial(Case, expect=AGAIN, max_s=RELAUNCH_MAX_S)
on = functools.partial(Case, expect=ON)
of_sparkd = functools.partial(on, of_sparkd=True)
in_a_load = functools.partial(again, of_sparkd=True)  # struck by what sparkd's log of the launch says

ENGINE = (
    again("kill-top", "engine's top process killed", make=signal("top")),
    again("kill-rank", "engine's rank killed", make=signal("rank")),
    again("kill-core", "engine core killed", make=signal("core"), nodes=("spark1",)),
    again("term-top", "SIGTERM to the engine's top", make=signal("top", "TERM")),
    again("hang", "rank hangs, /health says 200", make=fault("hang-requests"), mend=fault("hang-requests", False),
          until_over=True),
    again("stopped-rank", "rank stopped (SIGSTOP)", make=signal("rank", "STOP")),
)  # fmt: skip

CONTAINERS = (
    again("container-stop", "docker stop of the container", make=command(f"docker stop -t 3 {CONTAINER}")),
    again("container-restart", "docker restart of the container", make=command(f"docker restart -t 3 {CONTAINER}")),
    again("container-rm", "docker rm -f of the container", make=command(f"docker rm -f {CONTAINER}")),
    again("docker-restart", "Docker daemon restarted", make=command("systemctl restart docker", timeout_s=120)),
    again("docker-kill", "dockerd killed (SIGKILL)",
          make=command("kill -9 $(systemctl show -p MainPID --value docker)")),
    again("containerd-kill", "containerd and all shims killed", make=command("systemctl kill -s KILL containerd")),
)  # fmt: skip

AGENTS = (
    of_sparkd(
        "agent-kill",
        "sparkd killed (SIGKILL)",
        make=agents("kill -s KILL --kill-who=main"),
        nodes=NODES_AND_BOTH,
        lossless=True,
    ),
    of_sparkd("agent-restart", "sparkd restarted", make=agents("restart"), nodes=NODES_AND_BOTH, lossless=True),
    of_sparkd("agent-socket", "/run/sparkd emptied", make=command("rm -rf /run/sparkd/*"), lossless=True),
    of_sparkd("agent-key", "another key for 15 s", make=another_key, mend=own_key, mend_after_s=15, lossless=True),
)

MACHINES = (
    again("reboot", "node rebooted", make=reboot, nodes=NODES_AND_BOTH, max_s=180),
    again(
        "power-cut", "power cut for 2 s", make=power_cut, mend=power_on, mend_after_s=2, nodes=NODES_AND_BOTH, max_s=180
    ),
)

LOADING = (
    *(in_a_load(f"killed-at-{phase}", f"relaunch killed at {phase}", make=killed_at(phase)) for phase in PHASES),
    in_a_load("crash-in-load", "relaunch crashes in weights", make=struck_during_load("crash-during-load", _says_cuda_error),
          mend=fault("crash-during-load", False)),
    in_a_load("oom-in-load", "relaunch loses a rank in weights",
          make=struck_during_load("killed-during-load", _lost_its_rank), mend=fault("killed-during-load", False)),
    in_a_load("hang-in-load", "relaunch hangs in weights", max_s=240,
          make=struck_during_load("hang-during-load", _hung_and_was_ended), mend=fault("hang-during-load", False)),
)  # fmt: skip

LINK = (
    on("link-2", "link down for 2 s", make=link_down, mend=link_up, mend_after_s=2, nodes=(BOTH,), lossless=True),
    again("link-20", "link down for 20 s", make=link_down, mend=link_up, mend_after_s=20, nodes=(BOTH,), by_limit=True),
    of_sparkd("link-20-shipped", f"link down for 20 s, limit {SHIPPED_LINK_LOSS_S} s", nodes=(BOTH,), mend_after_s=20,
       make=with_limits(link_down, link_loss_max_s=SHIPPED_LINK_LOSS_S, canary_max_s=60, hang_max_s=90),
       mend=lab_limits(link_up, "link_loss_max_s", "canary_max_s", "hang_max_s")),
    again("link-200-shipped", f"link down for 200 s, limit {SHIPPED_LINK_LOSS_S} s", nodes=(BOTH,), mend_after_s=200,
          make=with_limits(link_down, link_loss_max_s=SHIPPED_LINK_LOSS_S, canary_max_s=60, hang_max_s=90),
          mend=lab_limits(link_up, "link_loss_max_s", "canary_max_s", "hang_max_s"), max_s=330, slow=True, of_sparkd=True),
    on("one-way-2", "what it sends is lost for 2 s", make=fault("one-way"), mend=fault("one-way", False), mend_after_s=2,
       lossless=True),
    again("one-way-20", "what it sends is lost for 20 s", make=fault("one-way"), mend=fault("one-way", False),
          mend_after_s=NETWORK_LOSS_S, by_limit=True),
    again("black-hole-20", "black hole for 20 s, carrier on", make=fault("black-hole"), mend=fault("black-hole", False),
          mend_after_s=NETWORK_LOSS_S, by_limit=True),
    on("loss-30", "30 % loss for 15 s", make=fault("loss"), mend=fault("loss", False), mend_after_s=15),
    on("mtu-end", "its MTU falls to 1500 for 8 s", make=fault("mtu-mismatch"), mend=fault("mtu-mismatch", False), mend_after_s=8),
    on("mtu-path", "path's MTU falls to 1500 for 8 s", make=fault("no-jumbo-path"), mend=fault("no-jumbo-path", False),
       mend_after_s=8),
)  # fmt: skip

CASES = (*ENGINE, *CONTAINERS, *AGENTS, *MACHINES, *LOADING, *LINK)
