"""The boundary: of trees that stand for a GB10's files, of what Docker says of a container, and of this very machine."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_facts import LAUNCH, engine, facts, serving

from sparkd.doctor import boundary, drift
from sparkd.doctor import boundary_container as inside
from sparkd.doctor import boundary_host as files
from sparkd.engine import process
from sparkd.engine.container import Docker
from sparkd.engine.spec import state_of
from sparkd.model.recipe import PatchInvariant


def put(root: Path, path: str, content: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


# --- the host's files ------------------------------------------------------------------------------


@pytest.fixture
def spark(tmp_path: Path) -> Path:
    """The files of a DGX Spark that matter here, in the form that its kernel and dpkg give them."""
    put(tmp_path, "sys/module/nvidia/version", "580.95.05\n")
    put(
        tmp_path,
        "proc/driver/nvidia/gpus/000f:01:00.0/information",
        "Model: \t\t NVIDIA GB10\nGPU Firmware: \t 580.95.05\nDevice Minor: 0\n",
    )
    put(tmp_path, "sys/class/infiniband/rocep1s0f0/fw_ver", "28.45.4028\n")
    put(tmp_path, "sys/class/infiniband/rocep1s0f0/ports/1/state", "4: ACTIVE\n")
    put(tmp_path, "sys/class/infiniband/rocep1s0f0/ports/1/gids/0", "fe80:0000:0000:0000:4ebb:47ff:fe00:0001\n")
    put(tmp_path, "sys/class/infiniband/rocep1s0f0/ports/1/gids/1", "0000:0000:0000:0000:0000:0000:0000:0000\n")
    put(tmp_path, "sys/class/infiniband/rocep1s0f0/ports/1/gids/3", "0000:0000:0000:0000:0000:ffff:0a00:0001\n")
    put(tmp_path, "sys/class/infiniband/rocep1s0f0/ports/1/gid_attrs/types/3", "RoCE v2\n")
    put(tmp_path, "sys/class/infiniband/rocep1s0f0/ports/1/gid_attrs/ndevs/3", "bond0\n")
    put(tmp_path, "proc/sys/kernel/osrelease", "6.17.0-1032-nvidia\n")
    put(
        tmp_path,
        "proc/cmdline",
        "BOOT_IMAGE=/vmlinuz quiet iommu.passthrough=1 kho=off console=tty0 console=ttyS0 -- init\n",
    )
    put(tmp_path, "etc/modprobe.d/nvidia.conf", "options nvidia NVreg_X=1\n")
    put(tmp_path, "sys/class/dmi/id/bios_version", "5.36_0ACUM018\n")
    put(tmp_path, "etc/dgx-release", 'DGX_NAME="DGX Spark"\nDGX_SWBUILD_VERSION="7.2.3"\nDGX_SERIAL_NUMBER="1234"\n')
    put(tmp_path, "etc/os-release", 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n')
    put(tmp_path, "etc/systemd/logind.conf", "[Login]\n#RemoveIPC=yes\n")
    put(tmp_path, "usr/lib/systemd/logind.conf.d/50-x.conf", "[Login]\nRemoveIPC=yes\n")
    put(tmp_path, "etc/systemd/logind.conf.d/50-x.conf", "[Login]\nRemoveIPC=no\n")
    put(tmp_path, "proc/swaps", "Filename Type Size Used Priority\n/swap.img file 16777212 0 -2\n")
    put(tmp_path, "proc/sys/vm/swappiness", "60\n")
    put(tmp_path, "proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n")
    put(tmp_path, "proc/sys/net/ipv4/conf/all/rp_filter", "2\n")
    put(tmp_path, "proc/sys/kernel/yama/ptrace_scope", "1\n")
    put(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    put(
        tmp_path,
        "var/lib/dpkg/status",
        "Package: nvidia-driver-580-open\nStatus: install ok installed\nVersion: 580.95.05-0ubuntu1\n\n"
        "Package: nvidia-container-toolkit\nStatus: install ok installed\nVersion: 1.17.8-1\n\n"
        "Package: nvidia-utils-570\nStatus: deinstall ok config-files\nVersion: 570.1\n\n"
        "Package: bash\nStatus: install ok installed\nVersion: 5.2\n",
    )
    return tmp_path


def test_driver_and_firmware(spark: Path) -> None:
    found = files.driver(spark)
    assert found == {
        "module nvidia": "580.95.05",
        "000f:01:00.0 model": "NVIDIA GB10",
        "000f:01:00.0 gpu firmware": "580.95.05",
        "rocep1s0f0 firmware": "28.45.4028",
        "package nvidia-driver-580-open": "580.95.05-0ubuntu1",
    }


def test_kernel_with_each_parameter_by_itself(spark: Path) -> None:
    found = files.kernel(spark)
    assert (
        found["release"] == "6.17.0-1032-nvidia"
        and found["parameter kho"] == "off"
        and found["parameter quiet"] == "set"
    )
    assert found["parameter console"] == "tty0 ttyS0" and "parameter init" not in found
    assert found["modprobe nvidia.conf"] == files.digest("options nvidia NVreg_X=1\n")


def test_host(spark: Path) -> None:
    found = files.host(spark)
    assert found["BIOS version"] == "5.36_0ACUM018" and found["os"] == "Ubuntu 24.04.3 LTS"
    assert found["dgx swbuild_version"] == "7.2.3" and not any("1234" in value for value in found.values())
    assert found["RemoveIPC"] == "no" and found["swap /swap.img"] == "file 16383 MiB"


def test_sysctls_of_every_depth(spark: Path) -> None:
    found = files.sysctls(spark)
    assert found == {
        "vm.swappiness": "60",
        "kernel.yama.ptrace_scope": "1",
        "net.ipv4.tcp_rmem": "4096 131072 6291456",
        "net.ipv4.conf.all.rp_filter": "2",
        "vm.transparent_hugepage.enabled": "madvise",
    }


def test_hcas_with_the_gids_that_lead_to_an_address(spark: Path) -> None:
    found = files.hcas(spark)
    assert found["rocep1s0f0 state"] == "4: ACTIVE"
    assert {name: value for name, value in found.items() if " gid " in name} == {
        "rocep1s0f0 gid 3": "0000:0000:0000:0000:0000:ffff:0a00:0001 RoCE v2 bond0"
    }


def test_a_bond_and_its_slaves(tmp_path: Path) -> None:
    put(tmp_path, "bond0/bonding/mode", "802.3ad 4\n")
    put(tmp_path, "bond0/bonding/slaves", "enp1s0f1np1 enp1s0f0np0\n")
    put(tmp_path, "enp1s0f0np0/mtu", "9000\n")
    put(tmp_path, "enp1s0f1np1/mtu", "1500\n")
    assert files.bond(tmp_path / "bond0") == {
        "bond mode": "802.3ad 4",
        "bond slaves": "enp1s0f0np0 enp1s0f1np1",
        "enp1s0f0np0 mtu": "9000",
        "enp1s0f1np1 mtu": "1500",
    }
    assert files.bond(tmp_path / "eth0") == {}


def test_a_machine_without_any_of_it_has_empty_groups(tmp_path: Path) -> None:
    for read in (files.driver, files.kernel, files.host, files.sysctls, files.hcas):
        assert read(tmp_path) == {}


# --- what we run -----------------------------------------------------------------------------------


def test_arguments_by_flag() -> None:
    assert boundary.argument_group(
        ("vllm", "serve", "/m", "--port=8000", "--headless", "--names", "a", "b", "--api-key", "sk-x")
    ) == {
        "command": "vllm serve /m",
        "--port": "8000",
        "--headless": "set",
        "--names": "a b",
        "--api-key": drift.SECRET_MARK + files.digest("sk-x")[:12],
    }
    # a number of tokens is none of the secrets
    assert boundary.argument_group(("--max-num-batched-tokens", "16384"))["--max-num-batched-tokens"] == "16384"


def test_secrets_of_the_environment_are_digests_and_what_changes_by_itself_is_left_out() -> None:
    found = inside.variables(
        {
            "VLLM_API_KEY": "sk-very-secret",
            "HF_TOKEN": "hf_x",
            "OMP_NUM_THREADS": "8",
            "SPARKD_LAUNCH_ID": LAUNCH,
            "PWD": "/",
        }
    )
    assert set(found) == {"VLLM_API_KEY", "HF_TOKEN", "OMP_NUM_THREADS"}
    assert "secret" not in found["VLLM_API_KEY"].removeprefix(drift.SECRET_MARK) and found["OMP_NUM_THREADS"] == "8"
    assert found["VLLM_API_KEY"] != inside.variables({"VLLM_API_KEY": "another"})["VLLM_API_KEY"]
    assert inside.SECRET is process.SECRET  # what the log of an engine hides is hidden here


def test_the_living_engine_is_read_from_the_kernel(tmp_path: Path) -> None:
    with engine(tmp_path, "vllm", arguments=("/models/x", "--port", "8000")):
        taken = boundary.take(facts(tmp_path, status=serving()))
        again = boundary.take(facts(tmp_path, status=serving()))
    assert taken.groups["engine-argv"] == {"command": "vllm serve /models/x", "--port": "8000"}
    assert taken.groups["engine-environment"].keys() >= {"OMP_NUM_THREADS", "VLLM_API_KEY"}
    assert not taken.groups["engine-environment"].keys() & {"SPARKD_LAUNCH_ID", "PWD"}
    assert "sk-very-secret" not in taken.model_dump_json()
    assert taken.groups == again.groups and drift.changes(taken, again) == []
    gone = boundary.take(facts(tmp_path, status=serving()))
    assert "engine-argv" in gone.unseen and not [c for c in drift.changes(taken, gone) if c.group.startswith("engine")]


# --- the container ---------------------------------------------------------------------------------

RAW = {
    "Id": "c0ffee" * 10,
    "Name": "/vllm_ds4",
    "Image": "sha256:29f3",
    "Driver": "overlay2",
    "State": {"Running": True, "Pid": 4711, "StartedAt": "2026-11-21T10:00:00Z"},
    "Config": {
        "Image": "vllm:lab", "Cmd": ["sleep", "infinity"], "Env": ["PATH=/bin", "HF_TOKEN=hf_abcdefghijkl"],
        "Labels": {"io.sparkd.epoch": "17", "io.sparkd.plan": "c0b4", "io.sparkd.rank": "0", "maintainer": "me"},
    },
    "HostConfig": {
        "NetworkMode": "host", "IpcMode": "host", "Privileged": True, "Binds": ["/home/m:/models:ro"], "Runtime": "nvidia",
        "RestartPolicy": {"Name": "unless-stopped"}, "Memory": 1 << 30, "Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}],
    },
}  # fmt: skip


def test_a_container_is_told_as_it_was_made_and_not_as_it_runs() -> None:
    found = inside.container_group(state_of(RAW))
    assert (
        found["restart policy"] == "unless-stopped" and found["ipc"] == "host" and found["memory limit"] == str(1 << 30)
    )
    assert found["mount /models"] == "/home/m read-only" and found["ulimit memlock"] == "-1:-1"
    assert found["environment PATH"] == "/bin" and found["environment HF_TOKEN"].startswith(drift.SECRET_MARK)
    assert found["label io.sparkd.rank"] == "0" and "label io.sparkd.epoch" not in found
    restarted = {**RAW, "Id": "beef" * 16, "State": {"Running": False, "StartedAt": "2026-11-22T10:00:00Z"}}
    assert inside.container_group(state_of(restarted)) == found


def test_the_writable_layer_without_what_programs_leave_behind() -> None:
    lines = [
        "A /workspace/run.sh", "C /usr/lib/python3/vllm/mxfp4.py", "D /etc/motd", "A /tmp/3f2a-uuid", "A /root/.cache/x",
        "A /opt/tool", "A /opt/tool/a", "A /opt/tool/b/c", "C /usr/lib/python3/__pycache__/x.cpython-312.pyc", "A /opt/toolbox",
        "... and 3 more",
    ]  # fmt: skip
    assert inside.layer_group(lines) == {
        "/workspace/run.sh": "added",
        "/usr/lib/python3/vllm/mxfp4.py": "changed",
        "/etc/motd": "deleted",
        "/opt/tool": "added",
        "/opt/toolbox": "added",
    }


def test_a_layer_of_thousands_is_bounded_and_still_told_apart() -> None:
    many = [f"A /opt/f{number:05}" for number in range(3000)]
    found = inside.layer_group(many)
    assert len(found) == inside.LAYER_NAMES_MAX + 1 and found != inside.layer_group([*many[:-1], "A /opt/other"])


PATCH = PatchInvariant(id="mxfp4", file="/usr/lib/python3*/vllm/mxfp4.py", needle="empty_cache", count=2)


def test_patches_are_counted_through_the_containers_root(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/python3.12/vllm/mxfp4.py", "empty_cache()\nx\nempty_cache()\n")
    found = inside.patch_group(tmp_path, PATCH)
    assert found["mxfp4 count"] == "2"
    assert found["/usr/lib/python3.12/vllm/mxfp4.py"] == files.digest("empty_cache()\nx\nempty_cache()\n")
    assert inside.patch_group(tmp_path / "usr", PATCH) == {"mxfp4 count": "no file"}


def test_a_link_that_leads_out_of_the_container_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "secret", "empty_cache")
    folder = tmp_path / "root/usr/lib/python3.12/vllm"
    folder.mkdir(parents=True)
    (folder / "mxfp4.py").symlink_to(tmp_path / "secret")
    assert inside.patch_group(tmp_path / "root", PATCH) == {"mxfp4 count": "no file"}


def test_dockers_settings_key_by_key() -> None:
    assert inside.daemon_settings('{"runtimes": {"nvidia": {}}, "iptables": false}') == {
        "daemon.json runtimes": '{"nvidia": {}}',
        "daemon.json iptables": "false",
    }
    assert "not JSON" in inside.daemon_settings("{")["daemon.json"]


# --- all of it -------------------------------------------------------------------------------------


def test_without_docker_the_rest_is_seen_and_twice_the_same(tmp_path: Path) -> None:
    one, two = boundary.take(facts(tmp_path)), boundary.take(facts(tmp_path))
    assert one.unseen.keys() >= {"container", "image", "writable-layer", "docker"}
    assert "Docker does not answer" in one.unseen["container"]
    every = {group for door in boundary.DOORS for group in door}
    assert one.groups.keys() | one.unseen.keys() == every and not one.groups.keys() & one.unseen.keys()
    assert one.groups["sparkd"]["plan"] == "d" * 64 and one.groups["kernel"]["release"] == os.uname().release
    assert one.groups == two.groups and drift.changes(one, two) == []


@pytest.fixture
def hung_docker(tmp_path: Path) -> Iterator[str]:
    """A socket that takes connections and never answers."""
    path = tmp_path / "hung.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    kept: list[socket.socket] = []

    def accept() -> None:
        try:
            while True:
                kept.append(listener.accept()[0])
        except OSError:
            return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"unix://{path}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for connection in kept:
        connection.close()
    thread.join(5)


def test_a_hung_docker_costs_its_own_groups_and_no_more_than_the_limit(tmp_path: Path, hung_docker: str) -> None:
    about = facts(tmp_path)
    about.docker = Docker(hung_docker, timeout_s=30)
    began = time.monotonic()
    taken = boundary.take(about, limit_s=0.6)
    assert time.monotonic() - began < 5
    assert taken.unseen["container"] == "no answer in 0.6 s" and taken.groups.keys() >= {
        "kernel",
        "host",
        "argv",
        "sysctls",
    }


def test_without_a_configuration_the_host_is_still_seen(tmp_path: Path) -> None:
    about = facts(tmp_path)
    about.settings = about.cluster_plan = about.rank = None
    taken = boundary.take(about)
    assert taken.node and taken.groups.keys() >= {"kernel", "host", "sysctls", "driver"}
    assert "configuration" in taken.unseen["argv"] and "configuration" in taken.unseen["link"]
