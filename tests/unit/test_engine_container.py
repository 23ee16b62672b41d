"""The container, against a real Docker Engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from engine_plan import plan
from engine_shell import IMAGE, Engine, shell_spec

from sparkd.engine import cleaning, container
from sparkd.engine.container import Docker, differences
from sparkd.engine.ensure import ensure
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import Cure, FindingError
from sparkd.model.plan import ContainerSpec

pytest_plugins = ["engine_docker"]

LABELS = {"io.sparkd.managed": "true", "io.sparkd.cluster": "lab", "io.sparkd.rank": "0"}
WAIT_MAX_S = 20


@pytest.fixture
def docker(engine: Engine) -> Docker:
    return engine.docker()


@pytest.fixture
def spec(docker: Docker, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContainerSpec]:
    (tmp_path / "models").mkdir()
    wanted = shell_spec(f"t-{abs(hash(request.node.name)) % 10**8}", volumes=(f"{tmp_path}/models:/models:ro",))
    yield wanted
    docker.remove(wanted.name)


def run_by_hand(docker: Docker, spec: ContainerSpec) -> None:
    """As an operator would with `docker run`: no label of ours, their own restart policy."""
    with docker._asking("test") as api:
        host = api.create_host_config(
            binds=list(spec.volumes), network_mode="host", ipc_mode="host", restart_policy={"Name": "unless-stopped"}
        )
        made = api.create_container(spec.image, command=list(spec.command), name=spec.name, host_config=host)
        api.start(made["Id"])


def test_a_missing_container_is_created_from_the_plan_and_says_so(docker: Docker, spec: ContainerSpec) -> None:
    made = ensure(docker, spec, LABELS, image_id=None)
    assert made.action == "created" and "did not exist" in made.says
    assert made.state.running and made.state.is_ours and made.state.restart_policy == "no"
    assert made.state.labels["io.sparkd.cluster"] == "lab"
    assert made.state.network == "host" and made.state.ipc == "host" and made.state.pid > 0

    assert ensure(docker, spec, LABELS, image_id=docker.image_id(IMAGE)).action == "kept"

    docker.stop(spec.name, grace_s=1)
    again = ensure(docker, spec, LABELS, image_id=None)
    assert again.action == "started" and "was exited" in again.says and again.state.id == made.state.id

    docker.remove(spec.name)
    anew = ensure(docker, spec, LABELS, image_id=None)
    assert anew.action == "created" and anew.state.id != made.state.id


def test_a_container_that_differs_is_never_replaced(docker: Docker, spec: ContainerSpec) -> None:
    made = ensure(docker, spec, LABELS, image_id=None).state
    docker.write_file(spec.name, "/workspace/only-copy.sh", b"true\n", 0o755)
    changed = spec.model_copy(update={"command": ("sleep", "1d"), "volumes": ()})

    with pytest.raises(FindingError) as caught:
        ensure(docker, changed, LABELS, image_id=None)

    finding = caught.value.finding
    assert finding.id == "container.differs" and finding.cure is Cure.PERSON
    assert "command: the container has ('sleep', 'infinity')" in finding.says
    assert any("/models" in line for line in finding.evidence)
    assert "A /workspace/only-copy.sh" in finding.evidence
    assert f"docker rm -f {spec.name}" in finding.remedy
    still = docker.inspect(spec.name)
    assert still is not None and still.id == made.id and still.running


def test_a_container_made_by_hand_is_adopted_where_it_matches_and_reported_where_not(
    docker: Docker, spec: ContainerSpec
) -> None:
    run_by_hand(docker, spec)
    adopted = ensure(docker, spec, LABELS, image_id=None)
    assert adopted.action == "kept" and "adopted as it is" in adopted.says and "unless-stopped" in adopted.says
    assert not adopted.state.is_ours

    with pytest.raises(FindingError) as caught:
        ensure(docker, spec.model_copy(update={"ipc": "private"}), LABELS, image_id=None)
    assert caught.value.finding.id == "container.foreign"


def test_a_missing_image_needs_a_person(docker: Docker, spec: ContainerSpec) -> None:
    with pytest.raises(FindingError) as caught:
        ensure(docker, spec.model_copy(update={"image": "nowhere/none:7"}), LABELS, image_id=None)
    assert caught.value.finding.id == "image.missing" and caught.value.finding.cure is Cure.PERSON
    assert caught.value.finding.remedy == "docker pull nowhere/none:7"


def test_a_container_that_cannot_start_says_what_docker_said(docker: Docker, spec: ContainerSpec) -> None:
    with pytest.raises(FindingError) as caught:
        ensure(docker, spec.model_copy(update={"command": ("/no/such/program",), "init": False}), LABELS, image_id=None)
    assert caught.value.finding.id == "container.start-failed"
    assert "/no/such/program" in caught.value.finding.evidence[0]


def test_programs_run_inside_with_their_status_and_both_outputs(docker: Docker, spec: ContainerSpec) -> None:
    ensure(docker, spec, LABELS, image_id=None)
    status, output = docker.exec_run(spec.name, ["bash", "-c", "echo out; echo err >&2; exit 7"], timeout_s=10)
    assert status == 7 and sorted(output.split()) == ["err", "out"]
    assert docker.exec_run(spec.name, ["no-such-program"], timeout_s=10)[0] in (126, 127)
    assert docker.exec_run(spec.name, ["bash", "/no/such/script"], timeout_s=10)[0] == 127
    with pytest.raises(UnreachableError, match=r"sleep in container .* did not end"):
        docker.exec_run(spec.name, ["sleep", "600"], timeout_s=1)
    with pytest.raises(SparkdError):
        docker.exec_run("no-such-container", ["true"], timeout_s=5)


@pytest.mark.parametrize(
    ("status", "said", "began"),
    [
        (126, "container is not running\r\n", False),
        (
            126,
            "OCI runtime exec failed: exec failed: unable to start container process: error starting setns process: "
            "fork/exec /proc/self/exe: no such file or directory: unknown",
            False,
        ),
        (
            126,
            'connection error: desc = "transport: Error while dialing dial unix ...: connect: connection refused"',
            False,
        ),
        (
            126,
            'OCI runtime exec failed: exec failed: unable to start container process: exec: "bash": permission denied',
            True,
        ),
        (
            127,
            'OCI runtime exec failed: exec failed: ...: exec: "bash": executable file not found in $PATH: unknown',
            True,
        ),
        (127, r'{"message":"OCI runtime exec failed: ...: exec: \"bash\": executable file not found in $PATH: unknown"}', True),
        (127, "bash: /workspace/run.sh: No such file or directory", True),
        (127, "", True),
        (1, "container is not running", True),
    ],
)
def test_what_docker_could_not_begin_is_not_taken_for_the_programs_word(status: int, said: str, began: bool) -> None:
    """The first three as Docker 20.10 said them: no shim any more, the root unmounted behind it, containerd away."""
    assert container._never_began(status, said, "bash") is not began


def test_a_container_that_lives_in_dockers_books_only_is_restarted(
    engine: Engine, docker: Docker, spec: ContainerSpec
) -> None:
    made = ensure(docker, spec, LABELS, image_id=None).state
    docker.write_file(spec.name, "/workspace/only-copy.sh", b"true\n", 0o755)
    containerd = next(each for each in psutil.Process(engine.process.pid).children() if each.name() == "containerd")
    shim = psutil.Process(made.pid).parent()
    assert shim is not None and "containerd-shim" in shim.name()
    for each in (containerd, shim, psutil.Process(made.pid)):
        each.kill()

    deadline = time.monotonic() + WAIT_MAX_S
    while time.monotonic() < deadline:
        with suppress(FindingError, UnreachableError):  # containerd is away for a moment
            again = ensure(docker, spec, LABELS, image_id=None)
            if docker.exec_run(spec.name, ["bash", "-c", "exit 7"], timeout_s=10)[0] == 7:
                break
        time.sleep(0.2)

    assert again.action in ("started", "kept") and again.state.id == made.id and again.state.pid != made.pid
    assert docker.read_file(spec.name, "/workspace/only-copy.sh", 100) == b"true\n"


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_files_go_in_and_out_byte_for_byte(docker: Docker, spec: ContainerSpec, tmp_path: Path, running: bool) -> None:
    (tmp_path / "models" / "config.json").write_text("{}")
    ensure(docker, spec, LABELS, image_id=None)
    if not running:
        docker.stop(spec.name, grace_s=1)
    data = bytes(range(256)) * 300
    docker.write_file(spec.name, "/workspace/deep/er/run.sh", data, 0o755)
    found = docker.path_stat(spec.name, "/workspace/deep/er/run.sh")
    assert found is not None and found.mode == 0o755 and found.size == len(data)
    assert docker.read_file(spec.name, "/workspace/deep/er/run.sh", 1 << 20) == data
    docker.write_file(spec.name, "/tmp/x", b"x", 0o600)
    assert docker.read_file(spec.name, "/tmp/x", 10) == b"x"
    assert docker.read_file(spec.name, "/bin/sh", 1 << 24) == Path("/usr/bin/bash").resolve().read_bytes()  # a link

    assert docker.path_exists(spec.name, "/models/config.json") is True  # through the mount
    assert docker.path_exists(spec.name, "/models/none") is False
    assert docker.path_exists("no-such-container", "/tmp") is None
    assert docker.read_file(spec.name, "/tmp/none", 10) is None
    with pytest.raises(SparkdError, match="more than the 10 expected"):
        docker.read_file(spec.name, "/workspace/deep/er/run.sh", 10)
    with pytest.raises(SparkdError, match="is a directory"):
        docker.read_file(spec.name, "/workspace", 1 << 20)


def test_writing_a_file_leaves_the_directories_that_were_there_alone(docker: Docker, spec: ContainerSpec) -> None:
    ensure(docker, spec, LABELS, image_id=None)
    before, _ = docker.exec_run(spec.name, ["bash", "-c", "[ -k /tmp ]"], timeout_s=10)  # its sticky bit
    docker.write_file(spec.name, "/tmp/new/file", b"", 0o644)
    after, _ = docker.exec_run(spec.name, ["bash", "-c", "[ -k /tmp ]"], timeout_s=10)
    assert before == after == 0


def test_events_tell_of_starts_and_deaths_until_closed(docker: Docker, spec: ContainerSpec) -> None:
    since = time.time() - 1
    ensure(docker, spec, LABELS, image_id=None)
    seen: list[str] = []
    died = threading.Event()
    events = docker.events(spec.name, since=since)

    def watch() -> None:
        for event in events:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                died.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    docker.remove(spec.name)
    assert died.wait(WAIT_MAX_S)
    assert seen == ["start", "die", "destroy"]
    events.close()
    thread.join(WAIT_MAX_S)
    assert not thread.is_alive()


def stand_still(engine: Engine) -> None:
    """SIGSTOP, and until it has reached every thread."""
    os.kill(engine.process.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{engine.process.pid}/task")
    deadline = time.monotonic() + 10
    while any(") T " not in (task / "stat").read_text() for task in tasks.iterdir()):
        assert time.monotonic() < deadline, "a stopped dockerd goes on"
        time.sleep(0.01)


def test_a_daemon_that_hangs_costs_one_greeting_not_a_limit_for_each_question(
    engine: Engine, spec: ContainerSpec
) -> None:
    """A preflight asks five things of it; the daemon is waited for once, and heard as soon as it is back."""
    docker = engine.docker(timeout_s=600)  # of the work, not of the greeting: no test would wait for it
    ensure(docker, spec, LABELS, image_id=None)
    docker._heard_at = 0.0  # as if it had been a while
    stand_still(engine)
    try:
        for _ in range(5):
            with pytest.raises(UnreachableError, match="Docker does not answer"):
                docker.inspect(spec.name)
    finally:
        os.kill(engine.process.pid, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while True:
        try:
            assert docker.inspect(spec.name) is not None
            break
        except UnreachableError:
            assert time.monotonic() < deadline, "a daemon that is back is not heard"
            time.sleep(0.1)


def test_a_daemon_that_hangs_or_is_gone_is_unknown_not_bad(engine: Engine, spec: ContainerSpec) -> None:
    docker = engine.docker(timeout_s=1)
    ensure(docker, spec, LABELS, image_id=None)
    stand_still(engine)
    try:
        for ask in (lambda: docker.inspect(spec.name), lambda: docker.exec_run(spec.name, ["true"], timeout_s=1)):
            with pytest.raises(UnreachableError, match="Docker does not answer"):
                ask()
    finally:
        os.kill(engine.process.pid, signal.SIGCONT)
    assert Docker(engine.url).inspect(spec.name) is not None
    with pytest.raises(UnreachableError, match="Docker does not answer") as caught:
        Docker("unix:///nonexistent/docker.sock").image_id(IMAGE)
    assert "No such file" in str(caught.value)


def test_no_number_of_questions_holds_more_than_a_few_connections(docker: Docker, spec: ContainerSpec) -> None:
    """Each name, path and exec has a URL of its own."""
    ensure(docker, spec, LABELS, image_id=None)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(15):
        assert docker.inspect(f"nobody-{number}") is None
        assert docker.path_stat(spec.name, f"/nothing-{number}") is None
        assert docker.exec_run(spec.name, ["true"], timeout_s=10)[0] == 0
    threads = [threading.Thread(target=docker.inspect, args=(f"nobody-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_MAX_S)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_a_paused_container_is_thawed_before_anything_in_it_is_ended(docker: Docker, spec: ContainerSpec) -> None:
    """Its processes take no signal; and only where it is ours: what somebody else froze stays frozen."""
    ensure(docker, spec, LABELS, image_id=None)
    with docker._asking("test") as api:
        api.pause(spec.name)
    ours = plan(container=spec, cluster="lab")
    cleaning.thaw(ours.model_copy(update={"cluster": "another"}), docker)
    assert (state := docker.inspect(spec.name)) is not None and state.status == "paused"
    cleaning.thaw(ours, docker)
    assert (state := docker.inspect(spec.name)) is not None and state.status == "running"
    cleaning.thaw(ours, docker)  # and again
    docker.remove(spec.name)
    cleaning.thaw(ours, docker)  # gone


def test_the_image_is_compared_by_what_its_name_means_now(docker: Docker, spec: ContainerSpec) -> None:
    state = ensure(docker, spec, LABELS, image_id=None).state
    assert differences(state, spec, image_id=state.image_id, runtimes=("runc",)) == []
    (moved,) = differences(state, spec, image_id="sha256:" + "0" * 64, runtimes=("runc",))
    assert "made from an older" in moved and "000000000000" in moved
    (runtime,) = differences(state, spec, image_id=None, runtimes=("runc", "nvidia"))
    assert "runtime" in runtime
