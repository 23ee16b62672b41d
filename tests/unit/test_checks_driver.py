"""Checks of layer driver: a healthy GB10 at rest and at work is no trouble, each fault that was seen has its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checks_facts import asked, container, facts, given, serving, verdicts

from sparkd.doctor import facts as shared
from sparkd.doctor.ask import ask
from sparkd.doctor.check import Check
from sparkd.doctor.checks import driver
from sparkd.doctor.declared import of_layer
from sparkd.doctor.facts import Facts
from sparkd.host.gpu import Gpu, Installed, SmiFailedError, SmiHungError
from sparkd.host.thermal import Zone
from sparkd.host.vm import kernel_release
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Layer, Who

RESTING = Gpu("NVIDIA GB10", "580.95.05", 40.0, 5.4, 0.0, 208.0, "P8", True, 0x1)
DECODING = replace(
    RESTING, temperature_c=66.0, power_w=45.0, utilisation=96.0, clock_mhz=2418.0, pstate="P0", reasons=0
)
NODE = Installed(("000f:01:00.0",), {"6.17.0-1014-nvidia": True}, "580.95.05", None)


def node(
    tmp_path: Path,
    gpu: Gpu | Exception | None = DECODING,
    here: Installed = NODE,
    version: str | None = "580.95.05",
    **more: Any,
) -> Facts:
    found = facts(tmp_path, **more)
    given(found, driver.installed, here)
    given(found, driver.version, version)
    given(found, driver.gpus, gpu if isinstance(gpu, Exception) else (gpu,) if gpu else ())
    given(found, shared.container, None)
    return found


@pytest.mark.parametrize("gpu", [RESTING, DECODING])
def test_a_healthy_gb10_is_no_trouble(tmp_path: Path, gpu: Gpu) -> None:
    found = ask(of_layer(Layer.DRIVER), node(tmp_path, gpu, status=serving(proof_age_s=3.0)), limit_s=5)
    assert not [finding for finding in found.findings if finding.verdict.value in ("bad", "warning")]
    assert len(found.findings) >= 8


def test_a_recipe_without_a_gpu_asks_nothing_of_one(tmp_path: Path) -> None:
    here = node(tmp_path, None, Installed(()), None, gpus=None)
    asked_ = {each.id for each in of_layer(Layer.DRIVER) if each.asked(here)}
    assert asked_ == {"driver.kernel", "driver.wall-clock"}


def test_a_machine_without_any_trace_of_a_gpu_is_one_unknown(tmp_path: Path) -> None:
    here = node(tmp_path, None, Installed(()), None)
    verdicts_ = {each.id: verdicts(each, here) for each in of_layer(Layer.DRIVER)}
    assert verdicts_.pop("driver.not-loaded") == ["unknown"]
    assert set(map(tuple, verdicts_.values())) == {(), ("good",)}


def test_a_driver_that_is_not_loaded(tmp_path: Path) -> None:
    here = node(tmp_path, None, replace(NODE, kernels={kernel_release(): True}), None)
    found = asked(driver.not_loaded, here)
    assert found.is_bad and found.evidence == ("the GPU is at 000f:01:00.0",)
    assert verdicts(driver.module_missing, here) == ["good"]
    assert verdicts(driver.unresponsive, here) == []
    off_bus = asked(driver.not_loaded, node(tmp_path, None, replace(NODE, devices=()), None))
    assert off_bus.evidence == ("no NVIDIA GPU is on the PCI bus either",)


def test_a_kernel_without_its_module_is_the_reason(tmp_path: Path) -> None:
    here = node(tmp_path, None, NODE, None)
    found = ask(of_layer(Layer.DRIVER), here, limit_s=5)
    (bad,) = [finding for finding in found.findings if finding.is_bad]
    assert bad.id == "driver.module-missing" and bad.says.startswith(kernel_release())
    assert f"linux-modules-nvidia-580-open-{kernel_release()}" in bad.remedy
    assert found.hidden["driver.not-loaded"] == "driver.module-missing"


def test_libraries_of_another_version(tmp_path: Path) -> None:
    found = asked(driver.version_mismatch, node(tmp_path, here=replace(NODE, library_version="580.126.09")))
    assert found.is_bad and found.says == "the loaded module is 580.95.05, the libraries are 580.126.09"
    assert verdicts(driver.version_mismatch, node(tmp_path, here=replace(NODE, library_version=None))) == ["unknown"]


def test_the_kernel_that_the_next_boot_takes(tmp_path: Path) -> None:
    kernels = {"6.17.0-1014-nvidia": True, "6.17.0-1032-nvidia": False}
    ahead = replace(NODE, kernels=kernels, next_kernel="6.17.0-1032-nvidia")
    assert (
        "6.17.0-1032-nvidia, which has no nvidia module" in asked(driver.next_kernel, node(tmp_path, here=ahead)).says
    )
    same = replace(ahead, next_kernel="6.17.0-1014-nvidia")
    assert verdicts(driver.next_kernel, node(tmp_path, here=same)) == ["good"]


@pytest.mark.parametrize(
    "trouble",
    [
        SmiHungError("nvidia-smi did not answer within 2 s, and cannot be killed"),
        SmiFailedError("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
    ],
)
def test_a_gpu_that_does_not_answer_is_one_finding(tmp_path: Path, trouble: SparkdError) -> None:
    found = ask(of_layer(Layer.DRIVER), node(tmp_path, trouble), limit_s=5)
    (bad,) = [finding for finding in found.findings if finding.is_bad]
    assert (bad.id, bad.says, bad.who) == ("driver.unresponsive", trouble.message, Who.HANDS)


def test_no_tool_to_ask_with_is_unknown(tmp_path: Path) -> None:
    here = node(tmp_path, SparkdError("there is no nvidia-smi on this host"))
    assert verdicts(driver.unresponsive, here) == ["unknown"]
    assert verdicts(driver.clock_low, here) == []


def test_a_clock_that_is_stuck_low(tmp_path: Path) -> None:
    stuck = replace(DECODING, clock_mhz=702.0, power_w=22.0)
    found = asked(driver.clock_low, node(tmp_path, stuck))
    assert found.says == "NVIDIA GB10 is 96 % busy at 702 MHz and 22.0 W, and names no reason"
    assert found.who is Who.HANDS
    assert verdicts(driver.silent_spin, node(tmp_path, stuck)) == ["good"]  # it is slow, not stuck
    hot = replace(stuck, reasons=0x40, temperature_c=90.0)
    assert verdicts(driver.clock_low, node(tmp_path, hot)) == ["good"]
    assert asked(driver.throttled, node(tmp_path, hot)).says == (
        "NVIDIA GB10 is held back: hardware thermal slowdown (90 C)"
    )
    assert verdicts(driver.clock_low, node(tmp_path, RESTING)) == []  # at rest the clock is meant to be low


def test_a_busy_gpu_that_does_nothing(tmp_path: Path) -> None:
    spinning = replace(DECODING, power_w=17.3)
    silent = serving(proof_age_s=400.0)
    found = asked(driver.silent_spin, node(tmp_path, spinning, status=silent))
    assert found.is_bad and found.symptom and "nothing has been answered for 400 s" in found.says
    assert verdicts(driver.silent_spin, node(tmp_path, spinning, status=serving(proof_age_s=5.0))) == ["warning"]
    assert verdicts(driver.silent_spin, node(tmp_path, DECODING, status=silent)) == ["good"]


@pytest.mark.parametrize(
    ("figure", "check"),
    [
        ({"clock_mhz": None}, driver.clock_low),
        ({"power_w": None}, driver.silent_spin),
        ({"reasons": None}, driver.throttled),
        ({"persistent": None}, driver.persistence),
    ],
)
def test_a_figure_that_is_not_told_is_unknown_not_zero(tmp_path: Path, figure: dict[str, None], check: Check) -> None:
    assert verdicts(check, node(tmp_path, replace(DECODING, **figure))) == ["unknown"]


def test_heat() -> None:
    assert driver.too_warm([DECODING]) == []
    assert [one.verdict.value for one in driver.too_warm([replace(DECODING, temperature_c=88.0)])] == ["warning"]
    assert [one.verdict.value for one in driver.too_warm([replace(DECODING, temperature_c=96.0)])] == ["bad"]
    zones = [Zone("thermal_zone0", "acpitz", 62.0, 105.0), Zone("thermal_zone3", "acpitz", 101.0, 105.0)]
    (found,) = driver.too_hot([*zones, Zone("thermal_zone4", "acpitz", 120.0, None)])
    assert found.says == "thermal_zone3 (acpitz) is at 101 C, the board cuts the power at 105"


@pytest.mark.parametrize(
    ("status", "said", "verdict"),
    [
        (0, "GPU 0: NVIDIA GB10 (UUID: GPU-4d1f)\n", "good"),
        (255, "Failed to initialize NVML: Unknown Error\n", "bad"),
        (0, "No devices found.\n", "bad"),
        (6, "", "bad"),
        (127, "exec failed: nvidia-smi: executable file not found\n", "unknown"),
    ],
)
def test_the_gpu_in_the_container(status: int, said: str, verdict: str) -> None:
    assert driver.judged_in_container("vllm_ds4", status, said).verdict.value == verdict


def test_the_container_is_asked_only_where_it_runs(tmp_path: Path) -> None:
    here = node(tmp_path)
    assert verdicts(driver.nvml_lost, here) == []
    given(here, shared.container, container())
    assert verdicts(driver.nvml_lost, here) == ["unknown"]  # Docker does not answer


def test_this_kernel_and_this_clock_are_fine(tmp_path: Path) -> None:
    here = node(tmp_path)
    assert verdicts(driver.kernel, here) == verdicts(driver.wall, here) == ["good"]
