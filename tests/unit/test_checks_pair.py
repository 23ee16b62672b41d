"""Checks of a pair: two boundaries side by side, taken of real plans and then made different."""

from __future__ import annotations

from pathlib import Path

import pytest
from node_facts import facts

from sparkd.doctor import boundary
from sparkd.doctor.checks import pair
from sparkd.doctor.declared import of_pairs
from sparkd.model.diagnosis import Boundary

SAME: dict[str, dict[str, str]] = {
    "sparkd": {
        "version": "0.1.0",
        "plan": "c0" * 32,
        "settings": "d1" * 32,
        "profile": "balanced",
        "limits.hang_max_s": "90",
    },
    "link": {"interface": "bond0", "mtu": "9000"},
    "driver": {
        "module nvidia": "580.95.05",
        "rocep1s0f0 firmware": "28.45.4028",
        "000f:01:00.0 gpu firmware": "580.95.05",
    },
    "kernel": {"release": "6.17.0-1032-nvidia"},
    "docker": {"version": "28.5.1"},
    "image": {"id": "sha256:" + "29" * 32},
    "patches": {"/usr/lib/mxfp4.py": "68" * 32, "mxfp4 count": "2"},
    "argv": {"--max-model-len": "131072"},
    "environment": {"OMP_NUM_THREADS": "8"},
    "weights": {"manifest": "c7" * 32, "files": "51", "bytes": "149000000000"},
}
HEAD = {"argv": {"--node-rank": "0"}, "environment": {"VLLM_HOST_IP": "10.0.0.1"}, "link": {"addresses": "10.0.0.1"}}
WORKER = {
    "argv": {"--node-rank": "1", "--headless": "set"},
    "environment": {"VLLM_HOST_IP": "10.0.0.2", "NCCL_IB_HCA": "rocep1s0f1"},
    "link": {"addresses": "10.0.0.2"},
}  # fmt: skip


def taken(node: str, *parts: dict[str, dict[str, str]], unseen: dict[str, str] | None = None) -> Boundary:
    groups: dict[str, dict[str, str]] = {}
    for part in parts:
        for group, values in part.items():
            groups[group] = groups.get(group, {}) | values
    kept = {group: values for group, values in groups.items() if group not in (unseen or {})}
    return Boundary(node=node, at="2026-11-21T10:53:04Z", groups=kept, unseen=unseen or {})


def compared(change: dict[str, dict[str, str]], *, unseen: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """id -> (verdict, sentence) of everything that is not good, with the worker's boundary changed."""
    pairs = {"spark1": taken("spark1", SAME, HEAD), "spark2": taken("spark2", SAME, WORKER, change, unseen=unseen)}
    found = [finding for check in of_pairs() for finding in check.compared(pairs)]
    return {finding.id: (str(finding.verdict), finding.says) for finding in found if str(finding.verdict) != "good"}


def test_a_healthy_pair_differs_only_in_what_is_a_nodes_own() -> None:
    assert compared({}) == {}


Change = dict[str, dict[str, str]]
CASES: dict[str, tuple[Change, str, str]] = {
    "unit.peer-sparkd-version": ({"sparkd": {"version": "0.2.0"}}, "warning", "0.1.0 on spark1, 0.2.0 on spark2"),
    "script.peer-settings-differ": (
        {"sparkd": {"settings": "d2" * 32, "limits.hang_max_s": "15"}}, "warning", "limits.hang_max_s 90 on spark1, 15 on spark2",
    ),
    "link.peer-mtu-differs": ({"link": {"mtu": "1500"}}, "bad", "9000 on spark1, 1500 on spark2"),
    "driver.peer-differs": ({"driver": {"module nvidia": "580.82.09"}}, "bad", "580.95.05 on spark1, 580.82.09 on spark2"),
    "link.peer-firmware": ({"driver": {"rocep1s0f0 firmware": "28.43"}}, "warning", "28.45.4028 on spark1, 28.43 on spark2"),
    "driver.kernel-differs": ({"kernel": {"release": "7.0.0-1019"}}, "warning", "7.0.0-1019 on spark2"),
    "docker.peer-version": ({"docker": {"version": "27.3.1"}}, "warning", "27.3.1 on spark2"),
    "image.peer-differs": ({"image": {"id": "sha256:" + "77" * 32}}, "bad", "sha256:292929292929 on spark1, sha256:7777"),
    "image.peer-patches-differ": ({"patches": {"/usr/lib/mxfp4.py": "70" * 32}}, "bad", "mxfp4.py differs"),
    "script.peer-argv-differs": ({"argv": {"--max-model-len": "65536"}}, "bad", "131072 on spark1, 65536"),
    "script.peer-env-differs": ({"environment": {"NCCL_PROTO": "Simple"}}, "bad", "none on spark1, Simple on spark2"),
    "weights.peer-differs": ({"weights": {"manifest": "c8" * 32, "files": "50"}}, "bad", "50 files, 149000000000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("id", CASES)
def test_one_difference_is_one_finding_with_both_values(id: str) -> None:
    change, verdict, told = CASES[id]
    found = compared(change)
    assert found.keys() == {id}
    assert found[id][0] == verdict and told in found[id][1]


def test_a_plan_that_differs_is_told_by_what_makes_it_so() -> None:
    found = compared({"sparkd": {"plan": "c1" * 32, "profile": "latency"}, "argv": {"--max-num-seqs": "4"}})
    verdict, says = found["script.peer-plan-differs"]
    assert verdict == "bad" and "profile: balanced on spark1, latency on spark2" in says


def test_the_living_engines_count_where_both_live() -> None:
    one = taken("spark1", SAME, {"engine-environment": {"X": "1"}})
    two = taken("spark2", SAME, {"engine-environment": {"X": "2"}})
    (found,) = pair.environment.compared({"spark1": one, "spark2": two})
    assert found.is_bad and "X differs: 1 on spark1, 2 on spark2" in found.says
    (found,) = pair.environment.compared({"spark1": one, "spark2": taken("spark2", SAME)})
    assert not found.is_bad


def test_what_one_node_could_not_see_is_not_compared() -> None:
    assert compared({}, unseen={"docker": "no answer", "image": "no answer", "weights": "gone", "driver": "?"}) == {}


def test_an_image_that_one_node_lacks_is_that_nodes_finding() -> None:
    assert compared({"image": {"id": "missing"}}) == {}


def test_a_machine_without_a_gpu_is_not_compared_by_its_driver() -> None:
    gone = {group: dict(values) for group, values in SAME.items()} | {"driver": {}}
    pairs = {"spark1": taken("spark1", gone), "spark2": taken("spark2", gone)}
    assert list(pair.driver.compared(pairs)) == [] and list(pair.firmware.compared(pairs)) == []


def test_real_boundaries_of_both_ranks_agree(tmp_path: Path) -> None:
    taken_now = {f"spark{rank + 1}": boundary.take(facts(tmp_path, rank=rank)) for rank in (0, 1)}
    wrong = [finding for check in of_pairs() for finding in check.compared(taken_now) if str(finding.verdict) != "good"]
    assert wrong == []
    assert {finding.id for check in of_pairs() for finding in check.compared(taken_now)} >= {
        "script.peer-plan-differs", "script.peer-argv-differs", "driver.kernel-differs", "link.peer-mtu-differs",
    } - ({"link.peer-mtu-differs"} if "mtu" not in taken_now["spark1"].groups["link"] else set())  # fmt: skip
