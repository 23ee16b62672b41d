"""Memory, the page cache, the clock and the GPU driver's version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparkd.host.clock import boot_id, boot_id_short, monotonic, uptime_s
from sparkd.host.gpu import driver_version
from sparkd.host.memory import drop_page_cache, read_memory
from sparkd.model.errors import SparkdError
from sparkd.model.report import launch_id

# The fields of a GB10 under load, in its own layout; figures from a public report (FIELD.md 9).
GB10 = """\
MemTotal:       125489152 kB
MemFree:         4980736 kB
MemAvailable:   118620160 kB
Buffers:           12345 kB
Cached:         115343360 kB
SwapCached:            0 kB
SwapTotal:      16777212 kB
SwapFree:       16777212 kB
Shmem:            262144 kB
HugePages_Total:       0
CmaTotal:         131072 kB
CmaFree:          120000 kB
"""


def test_a_meminfo_with_and_without_cma(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text(GB10)
    memory = read_memory(file)
    assert (memory.total, memory.free, memory.cma_free) == (125489152 * 1024, 4980736 * 1024, 120000 * 1024)
    file.write_text(GB10.partition("CmaTotal")[0])
    assert read_memory(file).cma_total is None


def test_a_meminfo_that_lacks_a_field_or_is_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    with pytest.raises(SparkdError, match="MemFree"):
        read_memory(tmp_path / "meminfo")
    with pytest.raises(SparkdError, match="cannot read"):
        read_memory(tmp_path / "none")


def test_this_machine_has_memory() -> None:
    memory = read_memory()
    assert memory.total >= memory.available > 0


def test_the_page_cache_is_dropped_and_measured(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("dropping the page cache needs root")
    (tmp_path / "warm").write_bytes(os.urandom(8 << 20))
    drop = drop_page_cache()
    assert drop.after.cached < drop.before.cached or drop.before.cached < 1 << 20
    assert drop.gained_bytes == drop.after.free - drop.before.free


def test_a_refusal_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(SparkdError, match="cannot drop") as raised:
        drop_page_cache(tmp_path)  # a directory refuses to be written, for root too
    assert "ReadWritePaths" in raised.value.hint


def test_the_clock() -> None:
    assert launch_id(boot_id(), 18) == f"{boot_id_short()}-18"
    assert len(boot_id_short()) == 8 and int(boot_id_short(), 16) >= 0
    assert uptime_s() > 0 and monotonic() <= monotonic()


def test_the_driver_is_named_by_either_file(tmp_path: Path) -> None:
    module, driver = tmp_path / "module", tmp_path / "driver"
    assert driver_version(module, driver) is None
    driver.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (dvs@x)\nGCC version: 13.3\n"
    )
    assert driver_version(module, driver) == "580.95.05"
    module.write_text("580.126.09\n")
    assert driver_version(module, driver) == "580.126.09"
