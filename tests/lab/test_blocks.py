"""What a relaunch cannot cure blocks within seconds, costs no retry loop, and clears by itself once it is mended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.pair import NODES, Pair, wait_for

CONTAINER = "vllm_ds4"
WEIGHTS = "/home/milo/models/DeepSeek-V4-Flash"
MXFP4 = "/usr/local/lib/python3.12/dist-packages/vllm/model_executor/layers/quantization/mxfp4.py"
IN_CONTAINER = f"docker exec {CONTAINER} "

# what, how it is broken, how it is mended, the finding's id, what the reason must name
BROKEN = [
    ("weights", f"mv {WEIGHTS} {WEIGHTS}.away", f"mv {WEIGHTS}.away {WEIGHTS}", "weights.path-missing", WEIGHTS),
    ("shard", f"mv {WEIGHTS}/model-00003-of-00046.safetensors /root/", f"mv /root/model-00003-of-00046.safetensors {WEIGHTS}/",
     "weights.shards-missing", "model-00003"),
    ("vllm", f"{IN_CONTAINER}mv /usr/local/bin/vllm /usr/local/bin/vllm.away",
     f"{IN_CONTAINER}mv /usr/local/bin/vllm.away /usr/local/bin/vllm", "image.vllm-missing", "127"),
    ("unpatched", f"{IN_CONTAINER}sed -i.kept 's/empty_cache/empty_kash/' {MXFP4}", f"{IN_CONTAINER}mv {MXFP4}.kept {MXFP4}",
     "image.mxfp4", "empty_cache"),
    ("ghost-unit", "printf '[Service]\\nExecStart=/usr/bin/docker exec vllm_ds4 bash /workspace/ghost-090.sh\\n' "
     "> /etc/systemd/system/vllm-ds4-head.service && systemctl daemon-reload && cp /etc/sparkd/sparkd.yaml /root/kept.yaml && "
     "printf 'operator_units: [{name: vllm-ds4-head.service, nodes: [spark1]}]\\n' >> /etc/sparkd/sparkd.yaml",
     "cp /root/kept.yaml /etc/sparkd/sparkd.yaml; rm /etc/systemd/system/vllm-ds4-head.service; systemctl daemon-reload",
     "unit.execstart-path", "ghost-090.sh"),
]  # fmt: skip


@contextmanager
def stopped(pair: Pair) -> Iterator[None]:
    pair.run("spark1", "sparkd stop")
    for node in NODES:
        pair.wait_phase("idle", node)
    yield


@pytest.mark.parametrize(("what", "break_it", "mend_it", "id", "names"), BROKEN, ids=[case[0] for case in BROKEN])
def test_blocked_with_its_reason_until_mended(
    serving: Pair, what: str, break_it: str, mend_it: str, id: str, names: str
) -> None:
    epoch = serving.epoch()
    with stopped(serving):
        both = NODES if what == "ghost-unit" else ("spark1",)  # the configuration is identical on all nodes
        for node in both:
            serving.run(node, break_it)
    launches = serving.run("spark1", "ls /var/log/sparkd/engine")
    try:
        serving.run("spark1", "sparkd start")
        status = serving.wait_phase("blocked", max_s=40)
        assert status["blocked"]["id"].startswith(id), status["blocked"]
        assert names in status["reason"], status["reason"]
        assert serving.lab.node("spark1").run("sparkd status", timeout_s=20, check=False).returncode == 2
        assert serving.run("spark1", "ls /var/log/sparkd/engine") == launches, "a launch was tried all the same"
    finally:
        for node in both:
            serving.run(node, mend_it)
    serving.wait_serving(newer_than=epoch)


def test_arguments_that_vllm_rejects_block_after_one_try(serving: Pair) -> None:
    """Only the engine can tell: one launch, then blocked with what it said, and free again when the recipe is mended."""
    epoch = serving.epoch()
    recipe = "/etc/sparkd/recipes/deepseek-v4-flash.yaml"
    try:
        for node in NODES:
            serving.run(node, f"cp {recipe} {recipe}.kept && sed -i 's/^arguments:/arguments:\\n  no-such-flag: true/' {recipe}")
        serving.run("spark1", "sparkd restart")
        blocked = wait_for(
            "a blocked node",
            lambda: next((s for s in map(serving.status, NODES) if s.get("phase") == "blocked"), None),
            max_s=90,
        )
        assert blocked["blocked"]["id"] == "script-unknown-flag", blocked["blocked"]
        assert "no-such-flag" in str(blocked["blocked"])
    finally:
        for node in NODES:
            serving.run(node, f"mv {recipe}.kept {recipe}")
    serving.wait_serving(newer_than=epoch)


def test_stale_workers_and_leftovers_are_cleaned_and_strangers_left_alone(serving: Pair) -> None:
    epoch = serving.epoch()
    with stopped(serving):
        serving.lab.fault("spark1", "stale-worker", True)
        serving.run("spark1", "head -c 1000000 /dev/zero > /dev/shm/psm_0badcafe")
        serving.run("spark1", "head -c 1000 /dev/zero > /dev/shm/somebody-elses")
        serving.run("spark1", "systemd-run --collect --unit=stranger -q sleep 600")
        stranger = serving.run("spark1", "systemctl show -p MainPID --value stranger")
        assert "psm_0badcafe" in serving.run("spark1", "sparkd clean --dry-run")
    try:
        serving.run("spark1", "sparkd start")
        serving.wait_serving(newer_than=epoch)
        left = serving.run("spark1", "ls /dev/shm")
        assert "psm_0badcafe" not in left
        assert "somebody-elses" in left
        assert serving.run("spark1", "systemctl show -p MainPID --value stranger") == stranger
        assert "stale processes ended" in " ".join(e["says"] for e in serving.events() if e["id"] == "phase.clean")
    finally:
        serving.run("spark1", "systemctl stop stranger; rm -f /dev/shm/somebody-elses", check=False)
        serving.lab.fault("spark1", "stale-worker", False)
