"""One fault at a time on real nodes: the first line of `sparkd doctor` names exactly that, and `--fix` touches only ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from sparkd.doctor import screen
from sparkd.model.diagnosis import Examination
from tests.lab.asking import doctor, told
from tests.lab.pair import NODES, Pair

CONTAINER = "vllm_ds4"
WEIGHTS = "/home/milo/models/DeepSeek-V4-Flash"
SHARD = f"{WEIGHTS}/model-00005-of-00046.safetensors"
MXFP4 = "/usr/local/lib/python3.12/dist-packages/vllm/model_executor/layers/quantization/mxfp4.py"
RECIPE = "/etc/sparkd/recipes/deepseek-v4-flash.yaml"
IN_CONTAINER = f"docker exec {CONTAINER} "
UNIT = "/etc/systemd/system/vllm-ds4-head.service"
RELOAD = "systemctl daemon-reload"
OWN_SCRIPT = "/workspace/own-serve.sh"
SERVE = "vllm serve /models/DeepSeek-V4-Flash --nnodes 2"
ENGINE_LOGS = "/var/log/sparkd/engine"
RETAG = (
    "R=$(docker inspect -f '{{.Config.Image}}' vllm_ds4); docker tag $R kept:1; "
    "printf 'FROM %s\nLABEL other=1\n' $R | docker build -q -t $R -"
)
KIT_OFF = "systemctl disable -q kit; rm -f /etc/systemd/system/kit.service"
DROP_INS = "/etc/systemd/system/sparkd-engine.service.d"
KEY_LOG = "/var/log/sparkd/engine/deadbeef-1.log"


@dataclass(frozen=True)
class Broken:
    """A fault, on `node` or on both. `id` is what the first line must name, `names` what it must mention."""

    name: str
    id: str
    break_it: str
    mend_it: str
    names: str = ""
    node: str = "spark1"
    both: bool = False
    tell: str = ""  # the node that the first line accuses; empty: `node`


def edited(script: str, file: str = RECIPE) -> dict[str, str]:
    """A file of the configuration changed by sed, and put back."""
    return {"break_it": f"cp {file} /root/kept && sed -i {script} {file}", "mend_it": f"cp /root/kept {file}"}


def operators_unit(exec_start: str, *more: str, node: str = "spark1", then: str = "true") -> dict[str, str]:
    """A unit of the operator's own, named in the configuration of its node."""
    lines = "\\n".join(["[Service]", f"ExecStart={exec_start}", *more])
    return {
        "break_it": f"printf '{lines}\\n' > {UNIT} && {RELOAD} && cp /etc/sparkd/sparkd.yaml /root/kept && "
        f"printf 'operator_units: [{{name: vllm-ds4-head.service, nodes: [{node}]}}]\\n' >> /etc/sparkd/sparkd.yaml && {then}",
        "mend_it": f"cp /root/kept /etc/sparkd/sparkd.yaml; systemctl reset-failed vllm-ds4-head; rm -f {UNIT}; {RELOAD}",
    }


def operators_script(*lines: str, node: str = "spark1") -> dict[str, str]:
    """A script in the container's writable layer, which a unit of the operator's own runs."""
    text = " ".join(f"'{line}'" for line in ("#!/bin/bash", *lines))
    unit = operators_unit(f"/usr/bin/docker exec {CONTAINER} bash {OWN_SCRIPT}", node=node)
    put = f"docker start {CONTAINER} && printf '%s\\n' {text} | docker exec -i {CONTAINER} tee {OWN_SCRIPT}"
    return {
        "break_it": f"({put}) > /dev/null && {unit['break_it']}",
        "mend_it": f"{IN_CONTAINER}rm -f {OWN_SCRIPT}; {unit['mend_it']}",
    }


def drop_in(unit: str, setting: str) -> dict[str, str]:
    directory = f"/etc/systemd/system/{unit}.d"
    return {
        "break_it": f"mkdir -p {directory} && printf '[Service]\\n{setting}\\n' > {directory}/own.conf && {RELOAD}",
        "mend_it": f"rm {directory}/own.conf; rmdir {directory}; {RELOAD}",
    }


def fault(name: str) -> dict[str, str]:
    """One that the lab itself can make."""
    return {"break_it": f"fault:{name}", "mend_it": f"fault:{name}"}


# On a pair that an operator stopped: nothing runs, and what is wrong is wrong with the node.
IDLE = [
    Broken("ghost-execstart", "unit.execstart-path", **operators_unit("/opt/kit/serve-head.sh"), names="/opt/kit/serve-head.sh"),
    Broken("script-not-in-container", "unit.execstart-path", names="/workspace/vllm-090.sh",
           **operators_unit(f"/usr/bin/docker exec {CONTAINER} bash /workspace/vllm-090.sh")),
    Broken("drop-in", "unit.execstart-path", names="/nonexistent/engine", mend_it=f"rm -r {DROP_INS}; {RELOAD}",
           break_it=f"mkdir -p {DROP_INS} && printf '[Service]\\nExecStart=\\nExecStart=/nonexistent/engine\\n' "
           f"> {DROP_INS}/own.conf && {RELOAD}"),
    Broken("double-supervision", "unit.double-supervision", names="kit.service", mend_it=f"{KIT_OFF}; {RELOAD}",
           break_it=f"printf '[Service]\\nExecStart=/usr/bin/docker start -a {CONTAINER}\\nRestart=always\\n[Install]\\n"
           "WantedBy=multi-user.target\\n' > /etc/systemd/system/kit.service && systemctl enable -q kit"),
    Broken("doubled-patch", "image.mxfp4-empty-cache-doubled",
           f"{IN_CONTAINER}sed -i.kept '/^ *del w13, w2/{{N;N;s/.*/&\\n&/}}' {MXFP4}",
           f"{IN_CONTAINER}mv {MXFP4}.kept {MXFP4}"),
    Broken("unpatched", "image.mxfp4-empty-cache-unpatched",
           f"{IN_CONTAINER}sed -i.kept 's/empty_cache/empty_kash/' {MXFP4}", f"{IN_CONTAINER}mv {MXFP4}.kept {MXFP4}"),
    Broken("no-vllm", "image.vllm-missing", f"{IN_CONTAINER}mv /usr/local/bin/vllm /usr/local/bin/vllm.away",
           f"{IN_CONTAINER}mv /usr/local/bin/vllm.away /usr/local/bin/vllm"),
    Broken("fork", "script.env-forbidden", both=True, names="VLLM_WORKER_MULTIPROC_METHOD",
           **edited("'s/^environment:/environment:\\n  VLLM_WORKER_MULTIPROC_METHOD: fork/'")),
    Broken("quotes-stripped", "script.json-arguments", both=True, names="compilation-config",
           **edited("-e '/^    cudagraph_mode:/d' -e '/^    custom_ops:/d' "
                    "-e 's/^  compilation-config:/  compilation-config: \"{cudagraph_mode:FULL_AND_PIECEWISE}\"/'")),
    Broken("wrong-tool-parser", "client.tool-parser", both=True,
           **edited("'s/^  tool-call-parser: .*/  tool-call-parser: hermes/'")),
    Broken("peer-plan", "script.peer-plan-differs", node="spark2", tell="*",
           **edited("'s/^  block-size: 256/  block-size: 128/'")),
    Broken("bad-configuration", "config.invalid", names="recipes", **edited("'s/^model:/modell:/'")),
    Broken("stale-worker", "process.stale", **fault("stale-worker")),
    Broken("leftovers", "shm.leftovers", **fault("shm-leftovers")),
    Broken("port-taken", "port.taken", names="8000",
           break_it="systemd-run --collect -q --unit=lab-squatter python3 -m http.server 8000 && timeout 10 bash -c "
           "'until ss -Hltn sport = 8000 | grep -q .; do sleep 0.1; done'", mend_it="systemctl stop lab-squatter"),
    Broken("page-cache", "memory.page-cache", break_it="fill-cache", mend_it=f"rm -f /root/cached; cp /root/kept {RECIPE}",
           both=True, tell="*"),
    Broken("mtu", "link.mtu", **fault("mtu-mismatch"), names="1500"),
    Broken("no-jumbo-path", "link.mtu-path", **fault("no-jumbo-path"), tell="*"),
    Broken("link-down", "link.carrier", "ip link set bond0 down", "ip link set bond0 up"),
    Broken("no-address", "link.address", "ip addr del 10.0.0.1/24 dev bond0", "ip addr add 10.0.0.1/24 dev bond0"),
    Broken("shard-missing", "weights.shards-missing", f"mv {SHARD} /root/kept-shard", f"mv /root/kept-shard {SHARD}",
           names="model-00005"),
    Broken("shard-truncated", "weights.truncated", f"cp {SHARD} /root/kept-shard && truncate -s -1000 {SHARD}",
           f"cp /root/kept-shard {SHARD}", names="model-00005"),
    Broken("no-weights", "weights.path-missing", f"mv {WEIGHTS} {WEIGHTS}.away", f"mv {WEIGHTS}.away {WEIGHTS}"),
    Broken("restart-policy", "container.restart-policy", f"docker update --restart=always {CONTAINER}",
           f"docker update --restart=no {CONTAINER}", names="always"),
    Broken("docker-down", "docker.unreachable", **fault("docker-down")),
    Broken("docker-hung", "docker.unreachable", **fault("docker-hung")),
    Broken("disk-full", "docker.state-disk-full", **fault("disk-full")),
    Broken("key-in-log", "endpoint.key-in-log", both=True, names="deadbeef-1",
           break_it=f"cp {RECIPE} /root/kept; printf 'Zq7-long-and-secret\\n' > /etc/sparkd/api-key; "
           f"chmod 600 /etc/sparkd/api-key; printf 'api_key_file: /etc/sparkd/api-key\\n' >> {RECIPE}; "
           f"echo \"non-default args: {{'api_key': ['Zq7-long-and-secret']}}\" > {KEY_LOG}",
           mend_it=f"cp /root/kept {RECIPE}; rm -f /etc/sparkd/api-key {KEY_LOG}"),
    Broken("image-retagged", "image.peer-differs", RETAG, node="spark2", tell="*",
           mend_it=f"docker tag kept:1 $(grep -o 'image: .*' {RECIPE} | cut -d' ' -f2); docker rmi kept:1"),
    Broken("worker-by-hand-not-headless", "script.headless", names="rank 1", node="spark2",
           break_it=f"docker start {CONTAINER} && docker exec -d {CONTAINER} {SERVE} --node-rank 1 && timeout 10 bash -c "
           "'until pgrep -f VLLM::Worker; do sleep 0.1; done'", mend_it=f"docker restart -t 0 {CONTAINER}; sparkd clean"),
    Broken("image-differs", "image.peer-differs", node="spark2", tell="*",
           break_it=f"{RETAG} && docker rm -f vllm_ds4",
           mend_it=f"docker tag kept:1 $(grep -o 'image: .*' {RECIPE} | cut -d' ' -f2); docker rmi kept:1"),
    Broken("no-such-user", "unit.drop-ins", names="nobody-of-here", **drop_in("sparkd-engine.service", "User=nobody-of-here")),
    Broken("restarts-itself", "unit.drop-ins", names="Restart=always", **drop_in("sparkd-engine.service", "Restart=always")),
    Broken("disabled", "unit.disabled", "systemctl disable -q sparkd", "systemctl enable -q sparkd", node="spark2"),
    Broken("given-up", "unit.start-limit", names="vllm-ds4-head.service",
           **operators_unit("/bin/false", "Restart=on-failure", "RestartSec=50ms",
                            then="(systemctl start vllm-ds4-head; timeout 10 bash -c "
                            "'until systemctl is-failed -q vllm-ds4-head; do sleep 0.1; done')")),
    Broken("own-script-without-quotes", "script.json-arguments", names=OWN_SCRIPT,
           **operators_script(f"{SERVE} --node-rank 0 --compilation-config {{cudagraph_mode:FULL_AND_PIECEWISE}}")),
    Broken("own-script-forks", "script.env-forbidden", names=OWN_SCRIPT,
           **operators_script("export VLLM_WORKER_MULTIPROC_METHOD=fork", f"{SERVE} --node-rank 0")),
    Broken("own-unit-not-headless", "script.headless", names="rank 1", node="spark2",
           **operators_unit(f"/usr/bin/docker exec {CONTAINER} {SERVE} --node-rank 1", node="spark2")),
    Broken("logs-disk-full", "docker.logs-disk-full", mend_it=f"umount -l {ENGINE_LOGS}",
           break_it=f"mount -t tmpfs -o size=64k full {ENGINE_LOGS}; cat /dev/zero > {ENGINE_LOGS}/fill 2>/dev/null || :"),
    Broken("mtu-of-the-worker", "link.mtu", **fault("mtu-mismatch"), node="spark2", names="1500"),
    Broken("black-hole", "link.peer-silent", **fault("black-hole"), tell="*", names="answers over the LAN"),
    Broken("one-way", "link.peer-silent", **fault("one-way"), node="spark2", tell="*", names="answers over the LAN"),
    Broken("loss", "link.loss", **fault("loss"), node="spark2", tell="*"),
    Broken("docker-down-on-the-worker", "docker.unreachable", **fault("docker-down"), node="spark2"),
    Broken("peer-without-daemon", "daemon.peer-silent", "systemctl stop sparkd; sleep 3", "systemctl start sparkd", node="spark2",
           tell="spark1", names="spark2"),
    Broken("no-daemon", "unit.not-running", break_it="systemctl stop sparkd", mend_it="systemctl start sparkd"),
]  # fmt: skip


# A living program that is not ours, with a segment named as Python names every one.
HOLDER = (
    "import mmap, os, time\\nf = os.open(\"/dev/shm/psm_0badcafe\", os.O_CREAT | os.O_RDWR)\\nos.ftruncate(f, 4096)\\n"
    "m = mmap.mmap(f, 4096)\\nos.close(f)\\ntime.sleep(600)\\n"
)


@contextmanager
def broken(pair: Pair, case: Broken) -> Iterator[None]:
    nodes = NODES if case.both else (case.node,)
    try:
        for node in nodes:
            _change(pair, node, case.break_it, on=True)
        yield
    finally:
        for node in nodes:
            _change(pair, node, case.mend_it, on=False)


def _change(pair: Pair, node: str, what: str, *, on: bool) -> None:
    if what.startswith("fault:"):
        pair.lab.fault(node, what.removeprefix("fault:"), on)
    elif what == "fill-cache":
        if node == "spark1":  # both share this machine's memory
            fill_cache(pair)
    else:
        pair.run(node, what, check=on)


def fill_cache(pair: Pair) -> None:
    """The engine is to ask for nearly all that is free, and the kernel then keeps 4 GiB of a file that was read."""
    meminfo = pair.run("spark1", "cat /proc/meminfo").splitlines()
    gib = {line.split()[0]: int(line.split()[1]) / 2**20 for line in meminfo[:10]}
    share = (gib["MemFree:"] - 2) / gib["MemTotal:"]
    change = f"s/gpu-memory-utilization: [0-9.]*/gpu-memory-utilization: {share:.3f}/"
    for node in NODES:
        pair.run(node, f"cp {RECIPE} /root/kept && sed -i '{change}' {RECIPE}")
    pair.run("spark1", "truncate -s 4G /root/cached && cat /root/cached > /dev/null", timeout_s=60)


@pytest.fixture(scope="module")
def idle(pair: Pair) -> Iterator[Pair]:
    """A pair that has served, and that an operator stopped."""
    pair.start()
    pair.wait_serving()
    pair.run("spark1", "sparkd stop")
    for node in NODES:
        pair.wait_phase("idle", node)
    yield pair
    pair.run("spark1", "sparkd start")
    pair.wait_serving()


@pytest.mark.parametrize("case", IDLE, ids=[case.name for case in IDLE])
def test_the_first_line_names_the_fault(idle: Pair, case: Broken) -> None:
    with broken(idle, case):
        asked = "spark1" if case.node == "spark2" else case.node
        answer = doctor(idle, asked)
        headline = answer["headline"]
        assert headline is not None, told(answer)
        assert headline["id"] == case.id, told(answer)
        assert case.names in f"{headline['says']} {headline['remedy']}", headline
        if case.tell != "*":
            assert headline["node"] in (case.tell or case.node, ""), told(answer)
        assert headline["remedy"], "nobody is told what to do"
        first = screen.lines(Examination.model_validate(answer))[0]
        assert case.id in first, first


def test_a_stopped_pair_is_no_incident(idle: Pair) -> None:
    answer = doctor(idle, "spark1")
    assert answer["headline"] is None, told(answer)
    assert [node["node"] for node in answer["nodes"]] == list(NODES), "both nodes answered"


def test_repairs_touch_only_what_is_ours(idle: Pair) -> None:
    """A stale worker and leftovers of ours go; a foreign vLLM, container and segment beside them stay."""
    idle.lab.fault("spark1", "stale-worker", True)
    idle.lab.fault("spark1", "shm-leftovers", True)
    image = idle.run("spark1", f"docker inspect -f '{{{{.Image}}}}' {CONTAINER}").strip()
    idle.run("spark1", f"docker run -d --name stranger --network host {image} sleep 600")
    idle.run("spark1", "docker exec -d stranger bash -c 'exec -a VLLM::Worker_TP0 sleep 600'")
    idle.run("spark1", f"printf '{HOLDER}' > /root/holder.py; systemd-run --collect -q --unit=holder python3 /root/holder.py")
    anothers = "/dev/shm/psm_00000bad"
    idle.run("spark1", f"head -c 4096 /dev/zero > {anothers}; chown 1000 {anothers}; touch -d '1 hour ago' {anothers}")
    try:
        strangers = idle.run("spark1", "docker top stranger -eo pid,args")
        idle.run("spark1", "sparkd doctor --fix --yes --no-peer", check=False, timeout_s=90)
        left = idle.run("spark1", "ls /dev/shm")
        assert "psm_1abde4d0" not in left and "sem.mp-1abde4d0" not in left
        assert "psm_0badcafe" in left, "it has a living owner"
        assert "psm_00000bad" in left, "it is another user's"
        assert idle.run("spark1", "docker top stranger -eo pid,args") == strangers
        assert not idle.run("spark1", "ss -Hltn sport = 29501").strip(), "the stale worker held the port"
    finally:
        idle.run("spark1", f"docker rm -f stranger; systemctl stop holder; rm -f /dev/shm/psm_0badcafe {anothers}", check=False)
        for name in ("stale-worker", "shm-leftovers"):
            idle.lab.fault("spark1", name, False)


def test_a_doubled_patch_is_folded(idle: Pair) -> None:
    case = next(case for case in IDLE if case.name == "doubled-patch")
    idle.run("spark1", f"docker start {CONTAINER}")  # it went down with Docker, and an idle pair does not need it
    with broken(idle, case):
        said = idle.run("spark1", "sparkd doctor --fix --yes --no-peer", check=False, timeout_s=60)
        assert "  done: mxfp4-empty-cache: patched" in said, said
        assert doctor(idle, "spark1", "--no-peer")["headline"] is None


def test_the_bundle_has_both_nodes_and_no_key(idle: Pair) -> None:
    key = idle.run("spark1", "cat /etc/sparkd/cluster.key").split()[0]
    idle.run("spark1", "rm -f /root/report.tar.gz; sparkd report -o /root/report.tar.gz", timeout_s=90)
    names = idle.run("spark1", "tar tzf /root/report.tar.gz")
    for name in ("doctor.json", "drift-spark1.json", "drift-spark2.json", "events.jsonl", "units/sparkd.service.txt"):
        assert name in names, names
    assert key not in idle.run("spark1", "tar xzOf /root/report.tar.gz")
