"""The link's checks: their judgement over what the doors say, and that each asks only where it applies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from checks_facts import asked, container, facts, given
from test_host_bond import BACKUP, LACP
from test_host_rdma import spark

from sparkd.doctor.checks import link, rdma
from sparkd.doctor.checks.image import look
from sparkd.doctor.declared import find, of_layer
from sparkd.doctor.facts import Facts
from sparkd.doctor.facts import container as container_fact
from sparkd.engine.inside import parse
from sparkd.host import bond as bonds
from sparkd.host.link import LinkState, MtuProbe, Nic, count_lost, nics
from sparkd.host.rdma import Gid, devices
from sparkd.model.finding import Layer, Verdict, Who

BAD, WARNING, GOOD, UNKNOWN = Verdict.BAD, Verdict.WARNING, Verdict.GOOD, Verdict.UNKNOWN
RDMA_IDS = ["link.rdma-missing", "link.rdma-down", "link.rdma-halves", "link.gid", "link.pcie", "link.rdma-errors"]


def wired(tmp_path: Path, hca: str = "rocep1s0f0,roceP2p1s0f0", **environment: str) -> Facts:
    """A Spark whose plan names RDMA devices."""
    here = facts(tmp_path, environment={"NCCL_IB_HCA": hca} | environment)
    given(here, rdma.hcas, devices(spark(tmp_path / "sys")))
    return here


def test_every_check_of_the_layer_is_listed_the_interface_first() -> None:
    ids = [each.id for each in of_layer(Layer.LINK)]
    assert ids[0] == "link.missing" and set(RDMA_IDS) < set(ids)
    assert ids.index("link.speed") < ids.index("link.rdma-missing")


def test_one_node_alone_has_no_link(tmp_path: Path) -> None:
    here = facts(tmp_path, size=1, environment={"NCCL_IB_HCA": "rocep1s0f0"})
    given(here, rdma.hcas, devices(spark(tmp_path / "sys")))
    for each in of_layer(Layer.LINK):
        assert each.asked(here) == [], each.id


@pytest.mark.parametrize(
    ("text", "said", "words"),
    [
        (BACKUP, [BAD], "enP2p1s0f0np0 of bond0 is down (its link failed 3 times)"),
        (BACKUP.replace("down", "up"), [GOOD], "2 slaves, all up"),
        (BACKUP.partition("Slave Interface:")[0], [BAD], "without slaves"),
    ],
)
def test_a_bond_lives_by_its_slaves(tmp_path: Path, text: str, said: list[Verdict], words: str) -> None:
    here = facts(tmp_path)
    given(here, link.bonded, bonds.parse("bond0", text))
    answers = link.bond_slaves.asked(here)
    assert [answer.verdict for answer in answers] == said and words in answers[0].says
    assert answers[0].who is Who.HANDS or said == [GOOD]


def test_a_link_that_is_no_bond_is_not_asked_for_slaves(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, link.bonded, None)
    assert link.bond_slaves.asked(here) == [] and link.bond_lacp.asked(here) == []


def test_lacp_that_nobody_answers() -> None:
    found = bonds.parse("bond0", LACP)
    assert link.judge_lacp(found).verdict is WARNING
    answered = replace(found, partner="aa:bb:cc:dd:ee:ff")
    assert "2 groups" in link.judge_lacp(answered).says
    together = replace(answered, slaves=tuple(replace(slave, aggregator=1) for slave in found.slaves))
    assert link.judge_lacp(together).verdict is GOOD
    assert link.judge_lacp(replace(found, partner="")).verdict is UNKNOWN


@pytest.mark.parametrize(
    ("changes", "failures", "hours", "verdict"),
    [(2, 0, 1, GOOD), (212, 0, 3, WARNING), (60, 0, 24 * 30, GOOD), (2, 40, 2, WARNING), (None, 0, 1, UNKNOWN)],
)
def test_flapping_is_a_rate_over_the_uptime(changes: int | None, failures: int, hours: float, verdict: Verdict) -> None:
    assert link.judge_flaps("bond0", changes, failures, hours * 3600).verdict is verdict


@pytest.mark.parametrize(
    ("card", "verdict"),
    [
        (Nic("enp1s0f0np0", "0x15b3", 200_000), GOOD),
        (Nic("enp1s0f0np0", "0x15b3", 100_000), GOOD),
        (Nic("enp1s0f0np0", "0x15b3", 50_000), BAD),
        (Nic("enp1s0f0np0", "0x15b3", None), UNKNOWN),
        (Nic("enP7s7", "0x10ec", 10_000), GOOD),  # of another maker's card nobody knows what it should do
    ],
)
def test_speed_is_judged_by_the_hardware(card: Nic, verdict: Verdict) -> None:
    (answer,) = link.judge_speed("bond0", [card])
    assert answer.verdict is verdict


def test_a_virtual_interface_has_no_speed_of_its_own(tmp_path: Path) -> None:
    (answer,) = link.judge_speed("bond0", [])
    assert answer.verdict is UNKNOWN
    net = tmp_path / "net"
    (net / "bond0/lower_eth9").mkdir(parents=True)
    (net / "eth9/device").mkdir(parents=True)
    (net / "eth9/device/vendor").write_text("0x15b3\n")
    (net / "eth9/speed").write_text("200000\n")
    assert nics("bond0", net) == (Nic("eth9", "0x15b3", 200_000),), "a bond stands on its slaves"
    assert nics("eth9", net) == (Nic("eth9", "0x15b3", 200_000),)
    assert nics("veth0", net) == ()


def test_interfaces_that_the_environment_names() -> None:
    names = ["lo", "bond0", "enp1s0f0np0"]
    (fine,) = link.judge_ifnames({"NCCL_SOCKET_IFNAME": "bond", "GLOO_SOCKET_IFNAME": "bond0"}, names)
    assert fine.verdict is GOOD, "NCCL takes prefixes"
    (gloo,) = link.judge_ifnames({"GLOO_SOCKET_IFNAME": "bond"}, names)
    assert gloo.verdict is BAD, "Gloo does not"
    (nccl,) = link.judge_ifnames({"NCCL_SOCKET_IFNAME": "=enp1s0f1np1"}, names)
    assert "enp1s0f1np1, which this node does not have" in nccl.says
    (excluded,) = link.judge_ifnames({"NCCL_SOCKET_IFNAME": "^docker"}, names)
    assert excluded.verdict is GOOD
    assert list(link.judge_ifnames({"OMP_NUM_THREADS": "8"}, names)) == []


# --- RDMA ------------------------------------------------------------------------------------------


def test_a_sound_spark_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    here = wired(tmp_path)
    given(here, rdma.counted, ({"rocep1s0f0:1 out_of_sequence": 7}, {"rocep1s0f0:1 out_of_sequence": 7}))
    for id in RDMA_IDS:
        check = find(id)
        assert check is not None
        answers = check.asked(here)
        assert answers and all(answer.verdict is GOOD for answer in answers), (id, answers)


def test_without_rdma_in_the_plan_nobody_asks(tmp_path: Path) -> None:
    for environment in ({}, {"NCCL_IB_DISABLE": "1"}):
        here = wired(tmp_path / str(len(environment)), hca="" if not environment else "rocep1s0f0", **environment)
        for id in RDMA_IDS:
            check = find(id)
            assert check is not None and check.asked(here) == [], id


def test_the_published_pair_shares_one_pcie_link(tmp_path: Path) -> None:
    """rocep1s0f0,rocep1s0f1: both ports cabled, each lacks its other half."""
    here = wired(tmp_path, "rocep1s0f0,rocep1s0f1")
    everything = tuple(
        replace(hca, ports=tuple(replace(port, state="ACTIVE", physical="LinkUp") for port in hca.ports))
        for hca in devices(tmp_path / "sys/class/infiniband") or ()
    )
    given(here, rdma.hcas, everything)
    answer = asked(rdma.rdma_halves, here)
    assert answer.verdict is WARNING and "behind one PCIe link (domain 0000)" in answer.says
    assert answer.remedy.startswith("NCCL_IB_HCA=rocep1s0f0,roceP2p1s0f0")


def test_one_half_alone_and_a_port_without_a_cable(tmp_path: Path) -> None:
    here = wired(tmp_path, "rocep1s0f0")
    assert "not roceP2p1s0f0, its port's other half" in asked(rdma.rdma_halves, here).says
    down = wired(tmp_path / "2", "=rocep1s0f1")
    answer = asked(rdma.rdma_down, down)
    assert answer.verdict is BAD and "DOWN (Disabled)" in answer.says


def test_devices_of_other_names(tmp_path: Path) -> None:
    here = wired(tmp_path, "mlx5_0,rocep1s0f0")
    answer = asked(rdma.rdma_missing, here)
    assert (
        answer.verdict is BAD and answer.says.startswith("NCCL_IB_HCA names mlx5_0") and "roceP2p1s0f0" in answer.says
    )


@pytest.mark.parametrize(("present", "verdict"), [(True, BAD), (False, UNKNOWN), (None, UNKNOWN)])
def test_a_machine_without_such_a_card_is_not_broken(present: bool | None, verdict: Verdict) -> None:
    (answer,) = rdma.judge_devices("rocep1s0f0", None, present)
    assert answer.verdict is verdict
    (answer,) = rdma.judge_devices("rocep1s0f0", (), present)
    assert answer.verdict is verdict


@pytest.mark.parametrize(
    ("pinned", "verdict", "words"),
    [
        (None, GOOD, "at GID 3"),
        ("3", GOOD, "RoCE v2 over IPv4"),
        ("-1", GOOD, "at GID 3"),
        ("4", BAD, "GID 4 of rocep1s0f0 is empty"),
        ("1", BAD, "link-local"),
        ("2", BAD, "IB/RoCE v1"),
        ("", BAD, "counts as 0"),
    ],
)
def test_gids(tmp_path: Path, pinned: str | None, verdict: Verdict, words: str) -> None:
    hca = next(each for each in devices(spark(tmp_path)) or () if each.name == "rocep1s0f0")
    answer = rdma.judge_gid(hca, pinned)
    assert answer.verdict is verdict and words in answer.says
    bare = replace(hca, ports=(replace(hca.ports[0], gids=(Gid(0, "fe80::1", "RoCE v2", "enp1s0f0np0"),)),))
    assert "no IPv4 address" in rdma.judge_gid(bare, None).says


def test_pcie_is_measured_by_what_a_gb10_gives(tmp_path: Path) -> None:
    hca = (devices(spark(tmp_path)) or ())[0]
    assert rdma.judge_pcie(hca).verdict is GOOD, "four of the card's sixteen lanes are normal"
    assert rdma.judge_pcie(replace(hca, pcie=replace(hca.pcie, width=2))).verdict is WARNING
    assert "16 GT/s x4, 32 GT/s x4 are normal" in rdma.judge_pcie(replace(hca, pcie=replace(hca.pcie, speed=16.0))).says
    assert rdma.judge_pcie(replace(hca, pcie=replace(hca.pcie, fatal_errors=2))).verdict is WARNING
    assert rdma.judge_pcie(replace(hca, pcie=replace(hca.pcie, speed=None))).verdict is UNKNOWN


def test_counters_that_move(tmp_path: Path) -> None:
    here = wired(tmp_path)
    given(
        here,
        rdma.counted,
        ({"a:1 packet_seq_err": 5, "a:1 np_cnp_sent": 1}, {"a:1 packet_seq_err": 123, "a:1 np_cnp_sent": 1}),
    )
    answer = asked(rdma.rdma_errors, here)
    assert answer.verdict is WARNING and answer.says == "a:1 packet_seq_err grew by 118 in 0.3 s"
    assert answer.evidence == ("a:1 packet_seq_err: 123 since boot",)
    assert asked(rdma.congestion, here).verdict is GOOD


def test_the_container_must_reach_the_devices(tmp_path: Path) -> None:
    here = wired(tmp_path)
    given(here, container_fact, container())
    for output, verdict in (
        ("vllm /usr/bin/vllm\nmemlock 8192\n", BAD),
        ("memlock unlimited\nverbs /dev/infiniband/uverbs0\n{}", GOOD),
        ('memlock 8192\nverbs /dev/infiniband/uverbs0\n{"ibverbs": null, "packages": {}}', BAD),
        ('memlock 8192\nverbs /dev/infiniband/uverbs0\n{"ibverbs": "/usr/lib/libibverbs.so.1"}', GOOD),
    ):
        given(here, look, parse(output))
        assert asked(rdma.verbs, here).verdict is verdict, output


@pytest.mark.parametrize(
    ("host", "limit", "verdict"),
    [
        ({}, 8 << 20, BAD),
        ({}, None, GOOD),
        ({}, 64 << 30, GOOD),
        ({"Privileged": True}, 8 << 20, GOOD),
        ({"CapAdd": ["CAP_IPC_LOCK"]}, 8 << 20, GOOD),
    ],
)
def test_memory_that_may_be_pinned(host: dict[str, object], limit: int | None, verdict: Verdict) -> None:
    assert rdma.judge_memlock(container(host=host), limit).verdict is verdict


def test_limits_of_a_process(tmp_path: Path) -> None:
    limits = tmp_path / "limits"
    limits.write_text("Limit                     Soft Limit           Hard Limit           Units\n"
                      "Max locked memory         8388608              8388608              bytes\n")  # fmt: skip
    assert rdma.locked_memory(str(limits)) == 8 << 20
    limits.write_text("Max locked memory         unlimited            unlimited            bytes\n")
    assert rdma.locked_memory(str(limits)) is None


# --- throughput ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gbps", "verdict"), [(12.7, BAD), (60.0, WARNING), (150.0, GOOD)])
def test_throughput_of_a_fast_link(tmp_path: Path, gbps: float, verdict: Verdict) -> None:
    here = facts(tmp_path)
    given(here, link.hardware, (Nic("enp1s0f0np0", "0x15b3", 200_000),))
    asked_for: list[float] = []

    def measure(seconds: float) -> dict[str, float]:
        asked_for.append(seconds)
        return {"spark2": gbps}

    here.throughput = measure
    assert asked(link.throughput, here).verdict is verdict
    assert asked_for == [link.THROUGHPUT_S] and link.throughput.slow


def test_throughput_cannot_be_judged_without_hardware_or_daemon(tmp_path: Path) -> None:
    here = facts(tmp_path)
    assert asked(link.throughput, here).verdict is UNKNOWN
    given(here, link.hardware, ())
    here.throughput = lambda seconds: {"spark2": 5.0}
    assert asked(link.throughput, here).verdict is GOOD


def test_the_interface_itself(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, link.state, LinkState("bond0", exists=False))
    assert asked(link.missing, here).verdict is BAD
    given(
        here, link.state, LinkState("bond0", exists=True, up=True, carrier=False, mtu=1500, addresses=("169.254.1.2",))
    )
    assert "no carrier" in asked(link.carrier, here).says
    assert "169.254.1.2, not 10.0.0.1" in asked(link.address, here).says
    assert "MTU 1500" in asked(link.mtu, here).says


SILENT = MtuProbe(False, None, "no answer")
ANSWERS = MtuProbe(True, True, "it answers")


def test_a_silent_peer_is_told_apart_from_a_silent_link(tmp_path: Path) -> None:
    """127.0.0.1 stands for a LAN address that answers."""
    nodes = [{"name": "spark1", "link_address": "10.0.0.1"}]
    for lan, words in (
        ("127.0.0.1", "answers over the LAN, but not over the link"),
        (None, "does not answer: it is off"),
    ):
        more = {"lan_address": lan} if lan else {}
        cluster = {"cluster": {"nodes": [*nodes, {"name": "spark2", "link_address": "10.0.0.2", **more}]}}
        here = facts(tmp_path, settings=cluster)
        given(here, link.probed, SILENT, "10.0.0.2", 9000)
        answer = asked(link.peer_silent, here)
        assert answer.verdict is BAD and words in answer.says and "spark2" in answer.says
        assert link.loss.asked(here) == [], "who does not answer at all loses nothing"
    given(here, link.probed, ANSWERS, "10.0.0.2", 9000)
    assert link.peer_silent.asked(here) == []
    here.calm = True
    given(here, link.probed, SILENT, "10.0.0.2", 9000)
    assert link.peer_silent.asked(here) == [], "a peer that boots is the barrier's business"


def test_echoes_that_are_lost_are_counted() -> None:
    assert count_lost("127.0.0.1", count=20) == 0
    assert count_lost("127.0.0.1", count=5, timeout_s=0.0) == 5, "no time to hear any"
