"""Memory beyond its totals: pressure, control groups, fragmentation, what nobody accounts for, and who kills for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparkd.host import pressure, usage, vm
from sparkd.host.killers import killer_name, killers
from sparkd.host.memory import Memory, read_memory
from sparkd.model.errors import SparkdError

GIB = 2**30


def test_pressure_as_the_kernel_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_text(
        "some avg10=12.50 avg60=8.00 avg300=1.00 total=123\nfull avg10=7.40 avg60=3.10 avg300=0.40 total=99\n"
    )
    assert pressure.memory_pressure(file) == pressure.Pressure(some_10s=12.5, full_10s=7.4, full_60s=3.1)
    file.write_text("")
    with pytest.raises(SparkdError):
        pressure.memory_pressure(file)
    with pytest.raises(SparkdError, match="cannot read"):
        pressure.memory_pressure(tmp_path / "none")


def test_a_control_group_of_version_2(tmp_path: Path) -> None:
    scope = "system.slice/docker-abc.scope"
    for name, text in (("memory.max", "68719476736\n"), ("memory.events", "low 0\nhigh 0\noom 3\noom_kill 2\n")):
        file = tmp_path / "cgroup" / scope / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(f"0::/{scope}\n")
    group = pressure.memory_group(7, tmp_path, tmp_path / "cgroup")
    assert (group.limit_bytes, group.oom_kills) == (64 * GIB, 2)
    (tmp_path / "cgroup" / scope / "memory.max").write_text("max\n")
    assert pressure.memory_group(7, tmp_path, tmp_path / "cgroup").limit_bytes is None


def test_a_control_group_of_version_1(tmp_path: Path) -> None:
    base = tmp_path / "cgroup/memory/docker/abc"
    base.mkdir(parents=True)
    (base / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (base / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text("4:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/x\n")
    group = pressure.memory_group(7, tmp_path, tmp_path / "cgroup")
    assert (group.limit_bytes, group.oom_kills) == (None, 1)
    with pytest.raises(SparkdError):
        pressure.memory_group(8, tmp_path, tmp_path / "cgroup")


def test_large_free_blocks(tmp_path: Path) -> None:
    file = tmp_path / "buddyinfo"
    file.write_text(
        "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n"
        "Node 0, zone   Normal   2351   2019   1258   2326   2468   1580    825    474    191     23    153 \n"
    )
    assert vm.large_free_bytes(file, page_bytes=4096) == (1 + 23) * (2 << 20) + (3 + 153) * (4 << 20)
    assert vm.large_free_bytes(file, page_bytes=65536) > 1580 * (2 << 20)  # 64 KiB pages: order 5 is 2 MiB already
    file.write_text("nothing\n")
    with pytest.raises(SparkdError):
        vm.large_free_bytes(file)


def test_what_nobody_accounts_for() -> None:
    fields = {"MemTotal": 100, "MemFree": 20, "Cached": 10, "AnonPages": 5, "Slab": 4, "Shmem": 9}
    assert vm.unaccounted_bytes(fields) == 61
    assert vm.unaccounted_bytes(vm.meminfo()) < read_memory().total / 2


def test_this_kernels_counters() -> None:
    assert "pswpin" in vm.counters() and vm.kernel_release() == os.uname().release and vm.boot_options()


def test_a_process_as_the_kernel_tells_it(tmp_path: Path) -> None:
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711/status").write_text(
        "Name:\tVLLM::Worker_TP\nState:\tD (disk sleep)\nPPid:\t12\nUid:\t1000\t1000\t1000\t1000\nVmRSS:\t  2048 kB\n"
        "VmSwap:\t 1024 kB\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\nCapEff:\t0000000000004000\n"
    )
    assert usage.usage(4711, tmp_path) == usage.Usage(
        4711, 12, "VLLM::Worker_TP", "D", 1000, 2 << 20, 1 << 20, kill_pending=True, may_lock=True
    )
    assert [one.pid for one in usage.everybody(tmp_path)] == [4711] and usage.usage(1, tmp_path) is None


def test_limits_and_files_of_this_process() -> None:
    limits = usage.limits(os.getpid())
    assert {"Max open files", "Max locked memory"} <= set(limits)
    before = usage.open_files(os.getpid())
    with Path("/dev/null").open():
        assert usage.open_files(os.getpid()) == before + 1
    me = usage.usage(os.getpid())
    assert me is not None and me.rss_bytes > 1 << 20 and me.uid == os.getuid() and not me.kill_pending
    assert usage.largest([me, usage.Usage(1, 0, "x", "S", 0, 0, 0, False, False)], count=1) == [me]


def spark(**swap: int) -> Memory:
    return Memory(total=120 * GIB, free=0, available=0, cached=0, buffers=0, shmem=0, **swap)


@pytest.mark.parametrize(
    ("argv", "floor_gib", "swap_percent"),
    [
        (["/usr/bin/earlyoom"], 12.0, 10.0),
        (["/usr/bin/earlyoom", "-r", "3600", "-m", "3,2", "-s", "100"], 3.6, 100.0),
        (["earlyoom", "-M", "1048576,524288", "-s100"], 1.0, 100.0),
        (["earlyoom", "-m", "5", "-M", "1048576"], 1.0, 10.0),
    ],
)
def test_where_earlyoom_strikes(tmp_path: Path, argv: list[str], floor_gib: float, swap_percent: float) -> None:
    (tmp_path / "845").mkdir()
    (tmp_path / "845/cmdline").write_bytes(b"\0".join(word.encode() for word in argv) + b"\0")
    (one,) = killers(spark(swap_total=0, swap_free=0), tmp_path)
    assert one.floor_bytes == pytest.approx(floor_gib * GIB) and one.swap_percent == swap_percent
    assert one.strikes_at(spark(swap_total=0, swap_free=0)) == one.floor_bytes  # no swap: memory alone decides
    full = one.strikes_at(spark(swap_total=16 * GIB, swap_free=16 * GIB))
    assert full == (one.floor_bytes if swap_percent == 100 else None)


def test_killers_are_recognised_and_lookers_are_not(tmp_path: Path) -> None:
    assert killer_name(["/usr/bin/python3", "-u", "/usr/local/bin/dgx-anti-oom.py"]) == "dgx-anti-oom"
    assert killer_name(["/usr/lib/systemd/systemd-oomd"]) == "systemd-oomd"
    assert killer_name(["journalctl", "-fu", "earlyoom.service"]) is None
    assert killer_name([""]) is None
    assert killers(spark(swap_total=0, swap_free=0), tmp_path) == []
