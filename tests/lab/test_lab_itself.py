"""The lab itself: what it makes, what breaks in it on request, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import base, config, faults, network, weights
from tests.lab.api import Lab
from tests.lab.container_image import REFERENCE
from tests.lab.host import DEFAULT_MIRROR, LabError, Unusable, mirror, reserved
from tests.lab.places import CHECKOUT, Places

SCRIPT = str(CHECKOUT / "scripts/lab")


# -- without nodes -----------------------------------------------------------------------------------------------


def test_its_configuration_differs_from_the_shipped_one_only_where_it_must() -> None:
    shipped = CHECKOUT / "config"
    for name, text in config.files().items():
        ours, theirs = text.splitlines(), (shipped / name).read_text().splitlines()
        added = [line.strip() for line in ours if line not in theirs]
        gone = [line.strip() for line in theirs if line not in ours]
        if name == "sparkd.yaml":
            assert all("192.168.1.1" in line for line in gone)
            assert {line.split(":")[0] for line in added} == {"lan_address", "VLLM_HOST_IP", "limits", *config.LIMITS}
        elif name == config.RECIPE:
            assert [line.split(":")[0] for line in gone] == ["image", "gpu-memory-utilization"]
            assert added == [f"image: {REFERENCE}", "- /var/lib/sparkd-lab:/lab", *added[2:]]
            assert added[2].startswith("gpu-memory-utilization: 0.10")
        else:
            assert text == (shipped / name).read_text()


def test_a_shipped_file_that_no_longer_fits_is_named(tmp_path: Path) -> None:
    (tmp_path / "sparkd.yaml").write_text("cluster: {}\n")
    with pytest.raises(LabError, match=r"sparkd\.yaml: nothing here looks like"):
        config.files(tmp_path)


def test_who_finds_it_in_use_is_told_by_whom(tmp_path: Path) -> None:
    """And one that dies lets go."""
    file = tmp_path / "lab.used"
    holder = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.lab.host import reserved\n"
        f"with reserved(Path({str(file)!r}), 'the lab'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, cwd=CHECKOUT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(LabError, match=rf"the lab is in use by .* \(pid {other.pid}\)"), reserved(file, "the lab"):
            pass
        other.kill()
    with reserved(file, "the lab"):
        assert f"(pid {os.getpid()})" in file.read_text()


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("sources.list", "deb http://a.example/debian bookworm main\n", "http://a.example/debian"),
        ("sources.list", "deb [signed-by=/k] http://a.example/debian bookworm main\n", "http://a.example/debian"),
        ("sources.list", "# deb http://a.example/debian bookworm main\n", DEFAULT_MIRROR),
        ("sources.list.d/u.list", "deb http://u.example/ubuntu noble main\n", DEFAULT_MIRROR),
        (
            "sources.list.d/d.sources",
            "Types: deb\nURIs: http://s.example/sec\nSuites: bookworm-security\n\n"
            "Types: deb\n# no\nURIs: http://b.example/debian\nSuites: bookworm bookworm-updates\n",
            "http://b.example/debian",
        ),
    ],
)
def test_the_mirror_is_the_machines_own(tmp_path: Path, file: str, text: str, expected: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / file).write_text(text)
    assert mirror(tmp_path) == expected


def test_weights_agree_with_their_index(tmp_path: Path) -> None:
    weights.write(tmp_path / "model")
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    shards = {file.name for file in (tmp_path / "model").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == shards
    assert len(shards) == 46
    one = (tmp_path / "model" / min(shards)).read_bytes()
    length = int.from_bytes(one[:8], "little")
    header = json.loads(one[8 : 8 + length])
    assert all(tensor in index["weight_map"] for tensor in header if tensor != "__metadata__")
    assert len(one) == 8 + length + weights.TENSOR_BYTES


def test_engine_faults_are_read_from_what_the_simulation_publishes(tmp_path: Path) -> None:
    assert faults.engine_faults(tmp_path / "none.txt") is None
    (tmp_path / "faults.txt").write_text("# comment\n\nexit-zero: ends with status 0: after a crash\n")
    assert faults.engine_faults(tmp_path / "faults.txt") == {"exit-zero": "ends with status 0: after a crash"}


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["exec"], ["exec", "spark3", "true"], ["link", "sideways"], ["fault", "spark1"]]
)
def test_a_command_line_without_sense_is_64(words: list[str]) -> None:
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 64
    assert "Traceback" not in done.stderr


# -- with two nodes of a lab of its own --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """A second lab, beside the one that the other tests use."""
    ours = Places.of_environment()
    lab = Lab(Places("itself", ours.state.with_name("itself"), ours.cache))
    lab.up()
    yield lab
    lab.down()


def script(lab: Lab, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
    env = os.environ | lab.places.environment()
    return subprocess.run([SCRIPT, *words], input=input, capture_output=True, text=True, env=env)


def remains(lab: Lab) -> list[str]:
    """Whatever of a lab is still on the machine."""
    prefix = lab.places.prefix
    found = [str(path) for path in Path("/run/netns").glob(f"{prefix}-*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{prefix}")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(lab.places.state) in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(lab.places.state).encode() in process.read_bytes():
                found.append(str(process))
        except OSError:
            continue
    return found + [str(lab.places.state)] * lab.places.state.exists()


def test_exec_passes_input_output_and_status_through(own: Lab) -> None:
    done = script(own, "exec", "spark1", "sh", "-c", "cat; echo oops >&2; exit 7", input="hello")
    assert (done.stdout, done.stderr, done.returncode) == ("hello", "oops\n", 7)


def test_nodes_are_machines_of_their_own(own: Lab) -> None:
    first, second = own.nodes
    assert [node.run("hostname").stdout.strip() for node in own.nodes] == ["spark1", "spark2"]
    assert first.boot_id() != second.boot_id()
    assert float(first.read("/proc/uptime").split()[0]) < float(Path("/proc/uptime").read_text().split()[0])
    assert first.read("/sys/class/net/bond0/mtu").strip() == "9000"
    first.run("ping -c1 -W2 -M do -s 8972 10.0.0.2")
    keys = [node.run("stat -c %a /etc/sparkd/cluster.key; cat /etc/sparkd/cluster.key").stdout for node in own.nodes]
    assert keys[0] == keys[1]
    assert keys[0].startswith("600\n")


def test_both_have_the_same_image_and_it_runs_as_the_recipe_wants(own: Lab) -> None:
    ids = {node.run(["docker", "image", "inspect", "-f", "{{.Id}}", REFERENCE]).stdout for node in own.nodes}
    assert len(ids) == 1
    options = "--rm --init --privileged --gpus all --net host --ipc host -v /var/lib/sparkd-lab:/lab"
    assert "simulated" in own.nodes[0].run(f"docker run {options} {REFERENCE} vllm --version").stdout


def test_sparkd_is_installed_and_not_started(own: Lab) -> None:
    for node in own.nodes:
        node.run("sparkd config check")
        assert node.unit_state("sparkd.service") == "inactive"
        assert node.run("systemctl is-enabled sparkd.service", check=False).stdout.strip() == "enabled"


def test_power(own: Lab) -> None:
    node = own.node("spark2")
    boots = [node.boot_id()]
    for hard in (False, True):
        node.reboot(hard=hard)
        boots.append(node.boot_id())
    node.run("systemctl reboot", check=False)  # asked for inside: it comes back as a machine does
    deadline = time.monotonic() + 60
    again = ""
    while again in ("", boots[-1]):
        assert time.monotonic() < deadline
        with contextlib.suppress(LabError):  # off for a moment
            again = node.boot_id()
        time.sleep(0.1)
    node.wait_booted()
    boots.append(node.boot_id())
    node.run("systemd-run --quiet --collect sleep 600; echo kept >/var/lib/kept; sync")
    node.power_cut()
    assert node.state() == "off"
    with pytest.raises(LabError, match="spark2 is off"):
        node.run("true")
    assert "spark2" in script(own, "logs", "spark2", "-n", "1").stdout
    node.power_on()
    assert node.read("/var/lib/kept") == "kept\n"
    node.power_off()
    node.power_on()
    boots.append(node.boot_id())
    assert len(set(boots)) == len(boots)


def reaches(own: Lab, size_bytes: int = 56) -> bool:
    return own.node("spark2").run(f"ping -c1 -W1 -M do -s {size_bytes} 10.0.0.1", check=False).returncode == 0


def test_link(own: Lab) -> None:
    node = own.node("spark1")
    own.link_down()
    assert node.read("/sys/class/net/bond0/carrier").strip() == "0"
    assert "default via" in node.run("ip route").stdout
    own.link_up()
    node.run("ping -c1 -W5 10.0.0.2")
    own.link_mtu(1500)
    assert not reaches(own, 8972)
    own.link_mtu(9000)
    assert reaches(own, 8972)


@pytest.mark.parametrize(
    ("name", "small", "jumbo"),
    [
        ("mtu-mismatch", True, False),
        ("no-jumbo-path", True, False),
        ("black-hole", False, False),
        ("one-way", False, False),
    ],
)
def test_faults_of_the_link(own: Lab, name: str, small: bool, jumbo: bool) -> None:
    own.fault("spark1", name, True)
    own.fault("spark1", name, True)  # twice is once
    assert (reaches(own), reaches(own, 8972)) == (small, jumbo)
    assert own.node("spark1").read("/sys/class/net/bond0/carrier").strip() == "1"
    own.fault("spark1", name, False)
    assert reaches(own, 8972)


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("docker-down", "! docker version"),
        ("docker-hung", "! timeout -s KILL 2 docker version"),
        ("disk-full", "! head -c 100000 /dev/zero >/var/lib/sparkd/probe"),
        ("stale-worker", "ss -Hltn sport = 29501 | grep -q . && ps -eo comm | grep -qx VLLM::Worker_TP"),
        ("shm-leftovers", "ls /dev/shm | grep -q ^psm_ && ls /dev/shm | grep -q ^sem.mp-"),
        ("frozen", "! timeout -s KILL 2 systemctl is-system-running"),
    ],
)
def test_faults_of_the_node(own: Lab, name: str, question: str) -> None:
    node = own.node("spark1")
    own.fault("spark1", name, True)
    assert faults.active(node) == [name]
    there = node.run(question, check=False).returncode
    own.fault("spark1", name, False)
    assert there == 0
    assert faults.active(node) == []
    assert node.run(question, check=False).returncode != 0
    node.run("rm -f /var/lib/sparkd/probe")


def test_an_unknown_fault_is_refused(own: Lab) -> None:
    with pytest.raises(Unusable):
        own.fault("spark1", "../etc/passwd", True)


def test_a_frozen_node_can_be_cut(own: Lab) -> None:
    node = own.node("spark2")
    own.fault("spark2", "frozen", True)
    node.power_cut()
    node.power_on()
    assert faults.active(node) == []


def test_what_runs_by_exec_goes_down_with_the_node(own: Lab) -> None:
    node = own.node("spark2")
    with node.spawn(["sleep", "600"]) as sleeper:
        node.power_cut()
        assert sleeper.wait(timeout=10) != 0
    node.power_on()


def test_up_after_a_crash_and_down_leave_nothing(own: Lab) -> None:
    """Last: it takes the lab away in several rude ways."""
    for pid in own.node("spark1").supervisor.pids():
        os.kill(pid, signal.SIGKILL)
    (own.places.state / "complete").unlink()
    own.up()
    assert own.node("spark1").state() == "running"

    own.down()
    assert remains(own) == []
    starting = subprocess.Popen([SCRIPT, "up"], env=os.environ | own.places.environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not own.node("spark2").group.pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    starting.kill()
    starting.wait()
    own.up()
    network.ip(own.places, "spark1", "link show bond0")
    own.down()
    assert remains(own) == []


def test_the_project_has_dependencies_to_fetch() -> None:
    assert any(dependency.startswith("pystemd") for dependency in base.project_dependencies())
