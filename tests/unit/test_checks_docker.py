"""Docker's checks: the daemon, the GPU's way into a container, room on the disks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from checks_facts import asked, container, facts, given
from engine_plan import plan

from sparkd.doctor.checks import docker
from sparkd.doctor.checks.docker import DOCKER_NEEDS, GIB, MIB, Room, judge_room, room, version_of
from sparkd.doctor.facts import container as container_fact
from sparkd.engine.spec import DaemonState, daemon_of
from sparkd.host import cdi
from sparkd.model.errors import UnreachableError
from sparkd.model.finding import Verdict

BAD, WARNING, GOOD, UNKNOWN = Verdict.BAD, Verdict.WARNING, Verdict.GOOD, Verdict.UNKNOWN
INFO = {
    "ServerVersion": "28.3.3",
    "Runtimes": {"runc": {}, "nvidia": {}},
    "DockerRootDir": "/var/lib/docker",
    "Architecture": "aarch64",
    "LoggingDriver": "json-file",
    "LiveRestoreEnabled": True,
    "CgroupDriver": "systemd",
}


def daemon(**changes: object) -> DaemonState:
    return daemon_of(INFO | changes)


def test_a_daemon_that_does_not_answer_hides_the_rest(tmp_path: Path) -> None:
    here = facts(tmp_path)
    answer = asked(docker.unreachable, here)
    assert answer.verdict is BAD and answer.remedy == "systemctl status docker"
    assert asked(docker.version, here).verdict is UNKNOWN
    assert all("docker.unreachable" in each.after for each in (docker.version, docker.runtime_missing))


@pytest.mark.parametrize(
    ("version", "verdict"), [("28.3.3", GOOD), ("20.10.24+dfsg1", GOOD), ("19.03.15", WARNING), ("dev", UNKNOWN)]
)
def test_the_version(tmp_path: Path, version: str, verdict: Verdict) -> None:
    here = facts(tmp_path)
    given(here, docker.info, daemon(ServerVersion=version))
    assert asked(docker.version, here).verdict is verdict


def test_versions_are_numbers() -> None:
    assert version_of("20.10.24+dfsg1") == (20, 10) and version_of("9.1") is not None and version_of("9.1") < (20, 10)


def test_the_gpu_needs_a_runtime_or_its_hook(tmp_path: Path) -> None:
    spec = plan().container
    (answer,) = docker.judge_runtime(spec, ["runc"], "")
    assert answer.verdict is BAD and "knows no nvidia runtime (runtimes: runc)" in answer.says
    (answer,) = docker.judge_runtime(spec, ["runc"], "nvidia-container-runtime-hook")
    assert answer.verdict is WARNING
    (answer,) = docker.judge_runtime(spec, ["runc", "nvidia"], "")
    assert answer.verdict is GOOD
    without = facts(tmp_path, gpus=None)
    given(without, docker.info, daemon(Runtimes={"runc": {}}))
    assert docker.runtime_missing.asked(without) == [], "no GPU is asked for"


def test_the_hook_is_looked_for_where_dockerd_would(tmp_path: Path) -> None:
    assert docker.gpu_hook(str(tmp_path)) == ""
    hook = tmp_path / "nvidia-container-runtime-hook"
    hook.write_text("")
    hook.chmod(0o755)
    assert docker.gpu_hook(str(tmp_path)) == hook.name


# --- disks ---------------------------------------------------------------------------------------------


def of(free_bytes: int, inodes_free: int | None = 10) -> Room:
    return Room(Path("/var/lib/docker"), 1, free_bytes, 900 * GIB, inodes_free)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (of(500 * GIB), GOOD, "500.0 of 900 GiB free"),
        (of(GIB), WARNING, "nearly full"),
        (of(0), BAD, "the disk of Docker (/var/lib/docker) is full"),
        (of(500 * GIB, 0), BAD, "no inodes left"),
        (of(500 * GIB, None), GOOD, "free"),
        (None, UNKNOWN, "cannot be looked at"),
    ],
)
def test_room_on_a_disk(found: Room | None, verdict: Verdict, words: str) -> None:
    (answer,) = judge_room(found, "Docker", DOCKER_NEEDS)
    assert answer.verdict is verdict and words in answer.says


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    here = facts(tmp_path)
    mine = room(tmp_path)
    assert mine is not None and mine.total_bytes > 0
    given(here, docker.docker_room, mine)
    assert docker.state_disk_full.asked(here) == [] and docker.logs_disk_full.asked(here) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 1 MB where the logs should go."""
    if os.geteuid() != 0:
        pytest.skip("to mount needs root")
    disk = tmp_path / "logs"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", disk], timeout=10, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        here = facts(tmp_path)
        here.paths = type(here.paths)(state=tmp_path, runtime=tmp_path, logs=disk, key=tmp_path)
        given(here, docker.docker_room, None)
        assert asked(docker.logs_disk_full, here).verdict is BAD
    finally:
        subprocess.run(["umount", disk], timeout=10, check=True)


def test_room_is_that_of_the_nearest_directory_that_exists(tmp_path: Path) -> None:
    found, above = room(tmp_path / "not/yet/there"), room(tmp_path)
    assert found is not None and above is not None and found.device == above.device


def test_a_log_without_end(tmp_path: Path) -> None:
    here = facts(tmp_path)
    log = tmp_path / "c-json.log"
    log.write_bytes(b"")
    os.truncate(log, docker.LOG_MAX_BYTES + MIB)  # sparse
    state = container(host={"LogConfig": {"Type": "json-file", "Config": {}}})
    raw = dict(state.raw) | {"LogPath": str(log)}
    given(here, container_fact, type(state)(**{**state.__dict__, "raw": raw, "log_path": str(log)}))
    assert asked(docker.log_unbounded, here).verdict is WARNING
    given(here, container_fact, container(host={"LogConfig": {"Type": "json-file", "Config": {"max-size": "10m"}}}))
    assert docker.log_unbounded.asked(here) == []
    given(here, container_fact, UnreachableError("away"))
    assert asked(docker.log_unbounded, here).verdict is UNKNOWN


# --- CDI -----------------------------------------------------------------------------------------------

SPEC = """\
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidia0
  mounts:
  - containerPath: /usr/lib/aarch64-linux-gnu/libcuda.so.580.95.05
    hostPath: /usr/lib/aarch64-linux-gnu/libcuda.so.580.95.05
    options: [ro, nosuid]
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
devices:
- name: all
kind: nvidia.com/gpu
"""


def test_a_spec_of_the_driver_before(tmp_path: Path) -> None:
    directory = tmp_path / "etc/cdi"
    directory.mkdir(parents=True)
    (directory / "nvidia.yaml").write_text(SPEC)
    (directory / "README").write_text("kind: none")
    smi = tmp_path / "usr/bin/nvidia-smi"
    smi.parent.mkdir(parents=True)
    smi.write_text("")
    (spec,) = cdi.specs([directory, tmp_path / "none"], tmp_path)
    assert (spec.kind, spec.paths) == ("nvidia.com/gpu", 2)
    assert spec.missing == ("/usr/lib/aarch64-linux-gnu/libcuda.so.580.95.05",)
    (directory / "nvidia.yaml").write_text(
        '{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "x": {"hostPath": "/usr/bin/nvidia-smi"}}'
    )
    (spec,) = cdi.specs([directory], tmp_path)
    assert spec.kind == "nvidia.com/gpu" and spec.missing == ()
    (directory / "nvidia.yaml").write_text("")
    (spec,) = cdi.specs([directory], tmp_path)
    assert spec.kind == ""


def test_the_runtimes_mode(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[nvidia-container-runtime]\nlog-level = "info"\nmode = "cdi"\n')
    assert cdi.runtime_mode(config) == "cdi" and cdi.runtime_mode(tmp_path / "none") == ""


def test_without_a_driver_nobody_asks_for_cdi(tmp_path: Path) -> None:
    if Path("/sys/module/nvidia/version").exists():
        pytest.skip("this machine has one")
    assert docker.cdi_stale.asked(facts(tmp_path)) == []
