"""The units and the scripts that they run: as systemd reads them, and as the kernel sees what they leave."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
UNITS = sorted((CHECKOUT / "units").glob("*.service"))
STEPS = CHECKOUT / "units/sparkd.service.d/254-restart-steps.conf"


def read(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    return unit


# --- as systemd reads them ---------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file tree with the units where scripts/install puts them, and something to execute behind every Exec line."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, units)
        for line in re.findall(r"^Exec\w+=(.*)", unit.read_text(), re.MULTILINE):
            program = tmp_path / line.split()[0].lstrip("/")
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
    return tmp_path


def systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say(root: Path, unit: Path) -> None:
    """Any output is a failure: an unknown key is only a warning to systemd, and no exit status."""
    if systemd_version() >= 254:
        shutil.copytree(STEPS.parent, root / "etc/systemd/system/sparkd.service.d")
    # what a unit orders itself after is somewhere else: those of this machine, as far as there are any
    for target in Path("/usr/lib/systemd/system").glob("*.target"):
        (root / "usr/lib/systemd/system").mkdir(parents=True, exist_ok=True)
        shutil.copy(target, root / "usr/lib/systemd/system")
    path = root / "etc/systemd/system" / unit.name
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", path], capture_output=True, text=True, check=False
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_keys_that_252_does_not_know_are_in_the_drop_in_only() -> None:
    newer = set(read(STEPS)["Service"])
    assert newer == {"RestartSteps", "RestartMaxDelaySec"}
    for unit in UNITS:
        assert not newer & set(read(unit)["Service"])


# --- how far they are closed -------------------------------------------------------------------------

# The exposure that `systemd-analyze security` gives, as 252 counts it: 0 closed, 10 open. It was 3.4, 9.6, 9.6.
EXPOSURE_MAX = {"sparkd.service": 3.0, "sparkd-engine.service": 2.6, "sparkd-ready.service": 0.7}


def exposure(root: Path, unit: str) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--root={root}", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_closed_as_far_as_stated(root: Path, unit: Path) -> None:
    if systemd_version() < 252:
        pytest.skip("its systemd-analyze cannot look at files")
    assert exposure(root, unit.name) <= EXPOSURE_MAX[unit.name]


def test_each_exception_has_its_reason_in_the_unit() -> None:
    text = (CHECKOUT / "units/sparkd.service").read_text()
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
    for capability in read(CHECKOUT / "units/sparkd.service")["Service"]["CapabilityBoundingSet"].split():
        assert capability.removeprefix("CAP_") in comments
    for left_out in (
        "PrivateDevices", "ProtectClock", "DeviceAllow", "PrivateUsers", "PrivateNetwork", "PrivateIPC", "ProtectProc",
        "ProcSubset", "IPAddressDeny", "RestrictNetworkInterfaces", "RootDirectory", "User",
    ):  # fmt: skip
        assert left_out in comments
        assert left_out not in read(CHECKOUT / "units/sparkd.service")["Service"]


# --- what must not be lost ---------------------------------------------------------------------------


def test_the_agent_outlives_what_it_looks_after() -> None:
    unit = read(CHECKOUT / "units/sparkd.service")
    assert "docker.service" in unit["Unit"]["Wants"] and "docker.service" in unit["Unit"]["After"]
    for tie in ("Requires", "BindsTo", "PartOf", "Requisite"):
        assert tie not in unit["Unit"], "a Docker restart would end the agent"
    service = unit["Service"]
    assert (service["Type"], service["Restart"], service["OOMScoreAdjust"]) == ("notify", "always", "-900")
    assert unit["Unit"]["StartLimitIntervalSec"] == "0", "a node that gives up at 3 a.m. stays down until 9"
    assert service["WatchdogSec"]
    # sparkd's work: the GPU's devices, every process, /proc/meminfo, Docker's and everybody's /dev/shm
    for blindfold in ("PrivateDevices", "ProtectClock", "ProcSubset", "ProtectProc", "PrivateIPC", "PrivateNetwork"):
        assert blindfold not in service


def test_the_engine_outlives_the_agent_and_goes_first() -> None:
    unit = read(CHECKOUT / "units/sparkd-engine.service")
    assert "sparkd.service" not in " ".join(unit["Unit"].values()), "a restart of the agent would end the engine"
    assert unit["Service"]["Restart"] == "no" and int(unit["Service"]["OOMScoreAdjust"]) > 0
    assert not unit.has_section("Install")
    assert unit["Unit"]["After"] == "docker.service", "at shutdown the engine ends before its container"


def test_waiting_for_the_endpoint_is_not_tied_to_the_agent() -> None:
    unit = read(CHECKOUT / "units/sparkd-ready.service")
    for tie in ("Requires", "BindsTo", "PartOf"):
        assert tie not in unit["Unit"], "a restart of the agent would stop what is ordered after the engine"
    assert unit["Service"]["TimeoutStartSec"] == "infinity" and not unit.has_section("Install")


# --- the scripts that the engine's unit runs -----------------------------------------------------------

LAUNCH = "0badcafe-4"


@pytest.mark.parametrize("script", ["install", "uninstall", "test", "demo", "sparkd-engine", "sparkd-engine-stop"])
def test_scripts_parse_and_can_be_executed(script: str) -> None:
    path = CHECKOUT / "scripts" / script
    assert os.access(path, os.X_OK)
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_engine_starts_without_the_launch_id_in_its_client(tmp_path: Path) -> None:
    """Or `docker exec` would look like a process of the engine."""
    program(tmp_path / "docker", "print(json.dumps([sys.argv[1:], sorted(n for n in os.environ if 'SPARKD' in n)]))")
    log = tmp_path / "engine log"
    log.write_text("from before\n")
    given = {"SPARKD_CONTAINER": "vllm_ds4", "SPARKD_SCRIPT": "/workspace/a b.sh", "SPARKD_LAUNCH_ID": LAUNCH}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SPARKD_LOG": str(log), **given}
    subprocess.run([CHECKOUT / "scripts/sparkd-engine"], env=environment, check=True, timeout=30)
    before, said = log.read_text().splitlines()
    assert before == "from before"
    assert said == '[["exec", "vllm_ds4", "bash", "/workspace/a b.sh", "0badcafe-4"], []]'
    for name in environment.keys() - {"PATH"}:
        missing = {key: value for key, value in environment.items() if key != name}
        done = subprocess.run(
            [CHECKOUT / "scripts/sparkd-engine"], env=missing, capture_output=True, text=True, timeout=30
        )
        assert done.returncode != 0 and name in done.stderr


def engine_script(tmp_path: Path, log: Path, client: str) -> subprocess.Popen[str]:
    program(tmp_path / "docker", client)
    given = {"SPARKD_CONTAINER": "vllm_ds4", "SPARKD_SCRIPT": "/workspace/a.sh", "SPARKD_LAUNCH_ID": LAUNCH}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SPARKD_LOG": str(log), **given}
    return subprocess.Popen([CHECKOUT / "scripts/sparkd-engine"], env=environment, text=True)


@pytest.mark.parametrize("status", [0, 3, 137])
def test_the_unit_ends_as_its_client_ended(tmp_path: Path, status: int) -> None:
    with engine_script(tmp_path, tmp_path / "log", f"print('last words'); sys.exit({status})") as engine:
        assert engine.wait(timeout=30) == status
    assert (tmp_path / "log").read_text() == "last words\n"


def test_a_full_disk_costs_the_log_and_not_the_engine(tmp_path: Path) -> None:
    """The client that met it would have ended with an error, and left an engine that nobody hears."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        says = "import time\nfor _ in range(40): print(999 * 'x', flush=True)\n"
        says += f"while os.statvfs('{disk}').f_bfree: time.sleep(0.01)\n"
        says += f"os.remove('{disk}/filler'); time.sleep(7)\nprint('after', flush=True)"
        (disk / "log").write_text("")
        (disk / "filler").write_bytes(bytes(40_000))
        with engine_script(tmp_path, disk / "log", says) as engine:
            assert engine.wait(timeout=60) == 0
        assert (disk / "log").read_text().endswith("after\n")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_log_that_cannot_be_opened_ends_nothing(tmp_path: Path) -> None:
    with engine_script(tmp_path, tmp_path / "missing/log", "print(100_000 * 'x'); sys.exit(5)") as engine:
        assert engine.wait(timeout=30) == 5


def stop_engine(tmp_path: Path, launch: str) -> str:
    """Run the stop script as systemd does: the id in the environment, no argument. What sparkd was called with."""
    command = program(tmp_path / "sparkd", "print(*sys.argv[1:])")
    environment = {"PATH": "/usr/bin:/bin", "SPARKD_COMMAND": str(command), "SPARKD_LAUNCH_ID": launch}
    stop = CHECKOUT / "scripts/sparkd-engine-stop"
    return subprocess.run([stop], env=environment, capture_output=True, text=True, check=True, timeout=30).stdout


def test_a_stop_looks_for_the_launch_and_not_for_itself(tmp_path: Path) -> None:
    """In a /proc of its own: an engine that this machine runs, in a lab say, would be looked at more closely."""
    if os.geteuid() != 0:
        pytest.skip("a /proc of its own needs root")
    command = program(tmp_path / "sparkd", "print(*sys.argv[1:])")
    script = f"""
        stop() {{ SPARKD_COMMAND={command} SPARKD_LAUNCH_ID=$1 {CHECKOUT}/scripts/sparkd-engine-stop; echo done; }}
        stop {LAUNCH}
        SPARKD_LAUNCH_ID={LAUNCH} sleep 300 & engine=$!
        until grep -qzx SPARKD_LAUNCH_ID={LAUNCH} /proc/$engine/environ; do sleep 0.1; done
        stop 0badcafe-44
        stop {LAUNCH}
    """
    sandbox = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-euc", script]
    done = subprocess.run(sandbox, capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.defpath})
    assert done.stdout.splitlines() == ["done", "done", f"engine-stop {LAUNCH}", "done"], done.stderr


def test_a_stop_sees_titled_processes_that_hide_their_environment(tmp_path: Path) -> None:
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'VLLM::EngineCore', 0, 0, 0); print(flush=True); time.sleep(300)"
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert engine.stdout is not None
        engine.stdout.readline()
        assert stop_engine(tmp_path, LAUNCH) == f"engine-stop {LAUNCH}\n"
    finally:
        engine.kill()
        engine.communicate(timeout=10)
