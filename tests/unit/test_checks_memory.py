"""Checks of layer host-memory: is there enough for a launch, and does a serving engine stay unsuspected?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checks_facts import asked, container, engine, facts, given, serving, usage, verdicts

from sparkd.doctor import facts as shared
from sparkd.doctor.check import Check
from sparkd.doctor.checks import driver, memory, process
from sparkd.doctor.facts import Facts
from sparkd.host import vm
from sparkd.host.gpu import GpuProcess
from sparkd.host.memory import Memory
from sparkd.host.processes import EngineProcess
from sparkd.host.usage import Usage
from sparkd.model.finding import Who

GIB = 2**30
NODE = int(119.67 * GIB)


def meminfo(free: float, available: float, cached: float = 0.0, **changes: int) -> Memory:
    fields = {
        "total": NODE,
        "free": int(free * GIB),
        "available": int(available * GIB),
        "cached": int(cached * GIB),
        "buffers": 0,
        "shmem": 0,
        "swap_total": 16 * GIB,
        "swap_free": 16 * GIB,
    }
    return Memory(**fields | changes)


def node(
    tmp_path: Path,
    now: Memory,
    *engines: EngineProcess,
    phase: str | None = "idle",
    everybody: tuple[Usage, ...] = (),
    on_gpu: tuple[GpuProcess, ...] = (),
    gpu: bool = True,
    **more: object,
) -> Facts:
    status = serving(phase=phase, serving=phase == "serving") if phase else None
    here = facts(tmp_path, status=status, **more)  # type: ignore[arg-type]
    given(here, shared.engine_processes, engines)
    given(here, shared.container, container())
    given(here, process.listeners, ())
    given(here, process.everybody, everybody)
    given(here, memory.now, now)
    given(here, driver.has_gpu, gpu)
    given(here, driver.gpu_processes, on_gpu)
    return here


CLEAN = meminfo(free=116, available=117)
CACHED = meminfo(free=4.75, available=114, cached=110)  # the field report's morning
SERVING = meminfo(free=2.0, available=4.0, cached=4.6)  # and its head under load


def test_a_clean_node_has_enough(tmp_path: Path) -> None:
    here = node(tmp_path, CLEAN)
    assert verdicts(memory.short, here) == verdicts(memory.page_cache, here) == ["good"]


def test_a_page_cache_that_sparkd_will_drop_is_a_warning(tmp_path: Path) -> None:
    found = asked(memory.page_cache, node(tmp_path, CACHED))
    assert (found.verdict.value, found.who) == ("warning", Who.SPARKD)
    assert "4.8 GiB of 119.7 are free, 110.0 GiB are page cache" in found.says and "needs 107.7" in found.says
    assert verdicts(memory.short, node(tmp_path, CACHED)) == ["good"]


@pytest.mark.parametrize(("phase", "settings"), [("idle", {"drop_caches": "never"}), (None, {})])
def test_a_page_cache_that_nobody_will_drop_is_bad(tmp_path: Path, phase: str | None, settings: dict[str, str]) -> None:
    here = node(tmp_path, CACHED, phase=phase, settings=settings)
    given(here, shared.launch_id, None)
    assert verdicts(memory.page_cache, here) == ["bad"]


def test_memory_that_somebody_holds_is_not_the_page_caches_fault(tmp_path: Path) -> None:
    here = node(tmp_path, meminfo(free=20, available=31.2), everybody=(usage(7, "comfy", rss_bytes=70 * GIB),))
    found = asked(memory.short, here)
    assert (
        found.is_bad and found.says.startswith("31.2 GiB of 119.7 can be had") and "comfy (pid 7)" in found.evidence[1]
    )
    assert verdicts(memory.page_cache, here) == []


def test_between_launches_memory_may_still_be_on_its_way(tmp_path: Path) -> None:
    held = meminfo(free=20, available=31.2)
    assert verdicts(memory.short, node(tmp_path, held, phase="backoff")) == ["warning"]
    assert verdicts(memory.short, node(tmp_path, held, phase="stopping")) == []
    here = node(tmp_path, held, phase="backoff")
    here.status = serving(phase="backoff", waiting={"id": "memory.short"})
    assert verdicts(memory.short, here) == ["bad"]


def test_a_serving_engine_may_fill_the_machine(tmp_path: Path) -> None:
    here = node(tmp_path, SERVING, engine(), phase="serving", everybody=(usage(rss_bytes=90 * GIB),))
    for each in (memory.short, memory.page_cache, memory.not_returned, memory.fragmentation):
        assert verdicts(each, here) == []
    for each in (memory.cotenant, memory.swapped_engine, memory.memory_killers):
        assert verdicts(each, here) == ["good"]


def test_a_foreign_engine_does_not_excuse_the_shortage(tmp_path: Path) -> None:
    theirs = engine(20, launch_id=None, container_id="f" * 64)
    assert verdicts(memory.short, node(tmp_path, meminfo(free=20, available=31.2), theirs)) == ["bad"]


def test_without_a_share_nothing_is_asked(tmp_path: Path) -> None:
    here = node(tmp_path, CACHED, gpu_memory_utilization=None)
    assert verdicts(memory.short, here) == verdicts(memory.page_cache, here) == []


def test_swap_is_wanted_and_wanted_empty(tmp_path: Path) -> None:
    assert verdicts(memory.no_swap, node(tmp_path, CLEAN)) == ["good"]
    bare = meminfo(free=116, available=117, swap_total=0, swap_free=0)
    assert verdicts(memory.no_swap, node(tmp_path, bare)) == ["warning"]
    assert verdicts(memory.no_swap, node(tmp_path, bare, gpu=False)) == []
    out = usage(4711, swap_bytes=int(3.4 * GIB))
    found = asked(memory.swapped_engine, node(tmp_path, SERVING, engine(4711), everybody=(out,)))
    assert found.says == "VLLM::Worker_TP (pid 4711) has 3.4 GiB in swap"


def test_cma_that_is_counted_wrongly(tmp_path: Path) -> None:
    wrong = meminfo(free=116, available=117, cma_total=0, cma_free=317272 * 1024)
    found = asked(memory.cma, node(tmp_path, wrong))
    assert found.verdict.value in ("warning", "bad") and "CmaFree (309.8 MiB) is above CmaTotal (0.0 MiB)" in found.says
    right = meminfo(free=116, available=117, cma_total=131072, cma_free=120000)
    assert verdicts(memory.cma, node(tmp_path, right)) == ["good"]
    assert verdicts(memory.cma, node(tmp_path, CLEAN)) == []


def test_others_on_the_gpu_and_in_memory_are_named_the_heaviest_first() -> None:
    on_gpu = (GpuProcess(812, "/usr/bin/ollama", 24 * GIB), GpuProcess(9, "Xorg", 18 << 20))
    on_gpu += (GpuProcess(100, "VLLM::EngineCore", 100 * GIB), GpuProcess(5, "python3", 90 * GIB))
    everyone = (usage(70, "java", rss_bytes=30 * GIB), usage(71, "bash", rss_bytes=GIB), usage(100, rss_bytes=99 * GIB))
    assert memory.cotenants(on_gpu, everyone, {5}) == [
        "java (pid 70) holds 30.0 GiB of memory",
        "ollama (pid 812) holds 24.0 GiB of the GPU's memory",
    ]


def test_a_cotenant_is_bad_where_it_prevents_the_launch(tmp_path: Path) -> None:
    ollama = (GpuProcess(812, "ollama", 24 * GIB),)
    assert verdicts(memory.cotenant, node(tmp_path, CLEAN, on_gpu=ollama)) == ["warning"]
    assert verdicts(memory.cotenant, node(tmp_path, meminfo(free=60, available=90), on_gpu=ollama)) == ["bad"]


def test_daemons_that_have_grown(tmp_path: Path) -> None:
    grown = usage(812, "polkitd", rss_bytes=int(3.4 * GIB))
    found = asked(memory.leaking_daemon, node(tmp_path, CLEAN, everybody=(grown, usage(1, "systemd", rss_bytes=GIB))))
    assert found.says == "polkitd (pid 812) has grown to 3.4 GiB"


@pytest.mark.parametrize(
    ("own", "group", "lowest"), [(0, None, None), (64 * GIB, None, 64 * GIB), (0, GIB, GIB), (2 * GIB, GIB, GIB)]
)
def test_the_lowest_limit_counts(own: int, group: int | None, lowest: int | None) -> None:
    assert memory.lowest_limit(container(host={"Memory": own}), group) == lowest


def test_a_container_with_too_low_a_limit(tmp_path: Path) -> None:
    here = node(tmp_path, CLEAN)
    given(here, shared.container, container(host={"Memory": 64 * GIB}))
    assert asked(memory.limit, here).says == "container vllm_ds4 may take 64.0 GiB, the engine will ask for 107.7"
    given(here, shared.container, container())
    assert verdicts(memory.limit, here) == ["good"]
    given(here, shared.container, None)
    assert verdicts(memory.limit, here) == []


@pytest.mark.parametrize("each", [memory.low_available, memory.fragmentation, memory.not_returned])
def test_what_reads_this_kernel_answers(tmp_path: Path, each: Check) -> None:
    """Good or unknown on a machine that is well, and never an exception."""
    found = asked(each, node(tmp_path, meminfo(free=2, available=100)))
    assert found.verdict.value in ("good", "unknown"), found.says


def test_kills_for_want_of_memory_are_told_as_this_kernel_counts_them(tmp_path: Path) -> None:
    """Whatever this machine went through before the tests: its counter only ever grows."""
    before = vm.counters()["oom_kill"]
    found = asked(memory.oom_kills, node(tmp_path, CLEAN))
    told = re.search(r"\d+", found.says)
    assert told is not None and before <= int(told[0]) <= vm.counters()["oom_kill"], found.says
    assert found.verdict.value == ("good" if told[0] == "0" else "warning")


@pytest.mark.parametrize(
    ("kills", "verdict", "says"),
    [
        (0, "good", "0 kills for want of memory since boot"),
        (1, "warning", "the kernel has killed 1 process of this host for want of memory since it booted"),
        (5, "warning", "the kernel has killed 5 processes of this host for want of memory since it booted"),
        (None, "unknown", "this kernel does not count its kills (/proc/vmstat has no oom_kill)"),
    ],
)
def test_kills_on_a_host_without_the_container(tmp_path: Path, kills: int | None, verdict: str, says: str) -> None:
    here = node(tmp_path, CLEAN)
    given(here, memory.kernel_counters, {} if kills is None else {"oom_kill": kills})
    found = asked(memory.oom_kills, here)
    assert (found.verdict.value, found.says) == (verdict, says)
