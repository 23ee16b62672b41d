"""The GPU's driver in files, and nvidia-smi's answers: real lines of GB10s, and a program that hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparkd.host import gpu
from sparkd.host.gpu import SmiFailedError, SmiHungError, installed, parse_gpus, parse_processes
from sparkd.model.errors import SparkdError

LIBRARY = "usr/lib/aarch64-linux-gnu"


def spark(root: Path) -> None:
    """The files of a DGX Spark that `installed` looks at."""
    device, card = root / "sys/bus/pci/devices/000f:01:00.0", root / "sys/bus/pci/devices/0000:01:00.0"
    for path, vendor, kind in ((device, "0x10de", "0x030200"), (card, "0x15b3", "0x020000")):
        path.mkdir(parents=True)
        (path / "vendor").write_text(f"{vendor}\n")
        (path / "class").write_text(f"{kind}\n")
    for release, line in (
        ("6.17.0-1014-nvidia", "kernel/nvidia-580-open/nvidia.ko.zst: \nkernel/x/nvidia-modeset.ko.zst: x\n"),
        ("6.17.0-1032-nvidia", "kernel/drivers/platform/nvidia.ko-not: \nkernel/x/nvidia-wmi.ko.zst:\n"),
    ):
        directory = root / "lib/modules" / release
        directory.mkdir(parents=True)
        (directory / "modules.dep").write_text(line)
    (root / LIBRARY).mkdir(parents=True)
    (root / LIBRARY / "libnvidia-ml.so.580.126.09").touch()
    (root / LIBRARY / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.580.126.09")
    (root / "boot").mkdir()
    (root / "boot/vmlinuz").symlink_to("vmlinuz-6.17.0-1032-nvidia")


def test_what_a_spark_has_installed(tmp_path: Path) -> None:
    spark(tmp_path)
    found = installed(tmp_path)
    assert found.devices == ("000f:01:00.0",)
    assert found.kernels == {"6.17.0-1014-nvidia": True, "6.17.0-1032-nvidia": False}
    assert (found.library_version, found.next_kernel) == ("580.126.09", "6.17.0-1032-nvidia")
    assert found.anything and not installed(tmp_path / "empty").anything


def test_a_gb10_as_nvidia_smi_tells_it() -> None:
    (one,) = parse_gpus("NVIDIA GB10, 580.95.05, 44, 11.62, 3, 208, 208, P8, Enabled, 0x0000000000000001\n")
    assert (one.name, one.driver, one.temperature_c, one.power_w) == ("NVIDIA GB10", "580.95.05", 44.0, 11.62)
    assert (one.utilisation, one.clock_mhz, one.pstate, one.persistent, one.reasons) == (3.0, 208.0, "P8", True, 1)


def test_what_is_not_available_is_absent_and_not_zero() -> None:
    line = "NVIDIA GB10, 580.95.05, [N/A], [N/A], [Not Supported], [N/A], [N/A], [N/A], Disabled, [N/A]"
    (one,) = parse_gpus(line)
    assert one == gpu.Gpu("NVIDIA GB10", "580.95.05", persistent=False)
    assert parse_gpus("") == parse_gpus("No devices were found\n") == []


def test_processes_on_the_gpu() -> None:
    found = parse_processes("4711, VLLM::EngineCore, 104277\n812, /usr/bin/a,b, [N/A]\nno line of it\n")
    assert [(one.pid, one.name, one.used_bytes) for one in found] == [
        (4711, "VLLM::EngineCore", 104277 << 20),
        (812, "/usr/bin/a,b", None),
    ]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called nvidia-smi, first in PATH; the test writes what it does."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def does(tool: Path, script: str) -> None:
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_a_tool_that_hangs_is_told_from_one_that_fails(tool: Path) -> None:
    does(tool, "exec sleep 30")
    with pytest.raises(SmiHungError, match="did not end within"):
        gpu.ask_gpus(timeout_s=0.2)
    does(tool, "echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    with pytest.raises(SmiFailedError, match="version mismatch"):
        gpu.ask_gpus(timeout_s=5)


def test_a_tool_that_answers(tool: Path) -> None:
    does(tool, 'case $1 in --query-gpu=*) echo "NVIDIA GB10, 580.95.05, 44, 11, 0, 208, 208, P8, Enabled, 0x1" ;; esac')
    assert [one.power_w for one in gpu.ask_gpus(timeout_s=5)] == [11.0]
    assert gpu.ask_processes(timeout_s=5) == []


def test_no_tool_is_no_failure_of_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparkdError, match="there is no nvidia-smi") as caught:
        gpu.ask_gpus(timeout_s=1)
    assert not isinstance(caught.value, SmiHungError | SmiFailedError)
