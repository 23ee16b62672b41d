"""The container's checks, over what `docker inspect` and `docker diff` say; and the door against a real Docker Engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checks_facts import CONTAINER_ID, LAUNCH, asked, facts, given, serving
from engine_plan import plan
from engine_shell import Engine, shell_spec

from sparkd.doctor import gate
from sparkd.doctor.check import Gate
from sparkd.doctor.checks import container
from sparkd.doctor.checks.container import seconds_of, worth_keeping
from sparkd.doctor.checks.docker import info
from sparkd.doctor.facts import Facts, image_id
from sparkd.doctor.facts import container as container_fact
from sparkd.engine.ensure import ensure
from sparkd.engine.spec import ContainerState, daemon_of, state_of
from sparkd.model.finding import Verdict, Who

pytest_plugins = ["engine_docker"]

BAD, WARNING, GOOD, UNKNOWN = Verdict.BAD, Verdict.WARNING, Verdict.GOOD, Verdict.UNKNOWN


def inspected(
    *,
    state: Mapping[str, Any] | None = None,
    host: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    ours: bool = True,
    **top: Any,
) -> ContainerState:
    """A container exactly as the tests' plan wants it, but for what is given."""
    spec = plan().container
    return state_of(
        {
            "Id": CONTAINER_ID,
            "Name": f"/{spec.name}",
            "Image": "sha256:a",
            "Created": "2026-05-30T06:58:00.1Z",
            "State": {"Running": True, "Status": "running", "StartedAt": "2026-05-30T07:00:00Z"} | dict(state or {}),
            "Config": {
                "Image": spec.image,
                "Cmd": list(spec.command),
                "Labels": {"io.sparkd.managed": "true"} if ours else {},
            }
            | dict(config or {}),
            "HostConfig": {
                "IpcMode": "host",
                "NetworkMode": "host",
                "Privileged": True,
                "Runtime": "nvidia",
                "Binds": list(spec.volumes),
                "DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}],
                "RestartPolicy": {"Name": "no"},
            }
            | dict(host or {}),
        }
        | top
    )


def node(tmp_path: Path, state: ContainerState | None, *, lives: bool = True) -> Facts:
    here = facts(tmp_path, status=serving() if lives else {"phase": "idle"})
    given(here, container_fact, state)
    given(here, image_id, "sha256:a")
    given(here, info, daemon_of({"Runtimes": {"nvidia": {}, "runc": {}}}))
    return here


def test_a_container_as_the_plan_wants_it(tmp_path: Path) -> None:
    here = node(tmp_path, inspected())
    given(here, container.added_files, ())
    for each in (
        *(container.missing, container.foreign, container.differs, container.restart_policy, container.restart_loop),
        *(container.oom_killed, container.start_failed, container.not_running, container.writable_layer),
        *(container.user, container.memory_limit),
    ):
        assert all(answer.verdict is GOOD for answer in each.asked(here)), each.id


def test_one_that_is_not_there(tmp_path: Path) -> None:
    gone = asked(container.missing, node(tmp_path, None))
    assert gone.verdict is BAD and LAUNCH in gone.says and gone.who is Who.SPARKD
    assert asked(container.missing, node(tmp_path, None, lives=False)).verdict is GOOD, "before a first launch"
    preflight = node(tmp_path, None)
    preflight.calm = True
    assert asked(container.missing, preflight).verdict is GOOD, "the next step makes it"


def test_whose_it_is_decides_how_a_difference_is_called(tmp_path: Path) -> None:
    ours = node(tmp_path, inspected(host={"NetworkMode": "bridge"}))
    theirs = node(tmp_path, inspected(host={"NetworkMode": "bridge"}, ours=False))
    assert asked(container.differs, ours).verdict is BAD and container.foreign.asked(ours) == []
    answer = asked(container.foreign, theirs)
    assert answer.verdict is BAD and "was not made by sparkd" in answer.says and "'bridge'" in answer.says
    assert container.differs.asked(theirs) == []
    assert asked(container.foreign, node(tmp_path, inspected(ours=False))).verdict is GOOD, (
        "made by hand, as it should be"
    )


@pytest.mark.parametrize(
    ("policy", "verdict"), [("no", GOOD), ("", GOOD), ("always", BAD), ("unless-stopped", BAD), ("on-failure", WARNING)]
)
def test_one_supervisor_is_enough(tmp_path: Path, policy: str, verdict: Verdict) -> None:
    answer = asked(container.restart_policy, node(tmp_path, inspected(host={"RestartPolicy": {"Name": policy}})))
    assert answer.verdict is verdict
    if verdict is not GOOD:
        assert answer.remedy == "docker update --restart=no vllm_ds4"


def test_a_loop(tmp_path: Path) -> None:
    looping = inspected(state={"Running": True, "Status": "restarting", "ExitCode": 127}, RestartCount=41)
    answer = asked(container.restart_loop, node(tmp_path, looping))
    assert answer.verdict is BAD and "41 times" in answer.says and "exit status 127" in answer.says
    assert asked(container.restart_loop, node(tmp_path, inspected(RestartCount=1))).verdict is GOOD


def test_memory_that_ran_out(tmp_path: Path) -> None:
    dead = inspected(state={"Running": False, "Status": "exited", "ExitCode": 137, "OOMKilled": True})
    assert asked(container.oom_killed, node(tmp_path, dead)).verdict is BAD
    before = inspected(state={"OOMKilled": True})
    assert asked(container.oom_killed, node(tmp_path, before)).verdict is WARNING, "an engine serves in it again"


def test_one_that_could_not_start(tmp_path: Path) -> None:
    error = "failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=all"
    state = inspected(state={"Running": False, "Status": "created", "Error": error})
    assert error in asked(container.start_failed, node(tmp_path, state)).says
    assert "container.start-failed" in container.not_running.after


def test_one_that_does_not_run(tmp_path: Path) -> None:
    exited = inspected(state={"Running": False, "Status": "exited", "ExitCode": 137})
    answer = asked(container.not_running, node(tmp_path, exited))
    assert answer.verdict is BAD and "exited (137)" in answer.says
    assert asked(container.not_running, node(tmp_path, exited, lives=False)).verdict is GOOD
    paused = inspected(state={"Status": "paused"})
    assert asked(container.not_running, node(tmp_path, paused)).remedy == "docker unpause vllm_ds4"
    dead = inspected(state={"Running": False, "Status": "dead"})
    assert asked(container.not_running, node(tmp_path, dead, lives=False)).verdict is BAD


def test_one_that_is_younger_than_its_launch(tmp_path: Path) -> None:
    here = node(tmp_path, inspected(Created="2099-01-01T00:00:00.123456789Z"))
    assert asked(container.recreated, here).verdict is UNKNOWN, "no launch file"
    here.paths.launch_file.write_text(f"SPARKD_LAUNCH_ID={LAUNCH}\n")
    answer = asked(container.recreated, here)
    assert answer.verdict is WARNING and "2099-01-01T00:00:00, after launch" in answer.says
    older = node(tmp_path, inspected())
    assert asked(container.recreated, older).verdict is GOOD


def test_dockers_times() -> None:
    assert seconds_of("1970-01-01T00:01:00.123456789Z") == pytest.approx(60.123456)
    assert seconds_of("yesterday") is None


def test_volumes_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("/mnt/gone")
    spec = plan().container.model_copy(
        update={"volumes": (f"{tmp_path}/models/ds4:/models", f"{tmp_path}/new:/n", "named:/x")}
    )
    here = facts(tmp_path, container=spec)
    answer = asked(container.mount_source, here)
    assert answer.verdict is BAD and f"{tmp_path}/models is a link to /mnt/gone" in answer.says
    (tmp_path / "models").unlink()
    assert asked(container.mount_source, here).verdict is GOOD, "Docker makes what is not there"


def test_what_only_the_writable_layer_holds() -> None:
    paths = (
        *("/workspace", "/workspace/sparkd-rank0.sh", "/workspace/vllm-head-090.sh", "/root/.cache/vllm"),
        *(
            "/root/.triton/cache",
            "/root/.triton/cache/x",
            "/tmp/torchinductor_root/ab/c.py",
            "/root/.cache/flashinfer/0.6/x",
        ),
        *("/usr/lib/python3/dist-packages/x/run.sh", "/tmp/tmpab12/build.sh"),
    )
    scripts, caches = worth_keeping(paths, {"/workspace/sparkd-rank0.sh"})
    assert scripts == ["/workspace/vllm-head-090.sh"]
    assert caches == ["/root/.triton", "/tmp/torchinductor_root", "/root/.cache/flashinfer"], (
        "an empty directory is none"
    )


def test_limits_and_users_that_an_operator_gave(tmp_path: Path) -> None:
    here = node(tmp_path, inspected(host={"Memory": 64 << 30}, config={"User": "1000:1000"}))
    assert "64.0 GiB" in asked(container.memory_limit, here).says
    assert asked(container.user, here).says == "container vllm_ds4 runs as user 1000:1000"
    root = node(tmp_path, inspected(config={"User": "0:0"}))
    assert asked(container.user, root).verdict is GOOD


def test_the_door_tells_what_the_checks_need(engine: Engine, tmp_path: Path) -> None:
    docker = engine.docker()
    spec = shell_spec("t-checks")
    try:
        ensure(docker, spec, {"io.sparkd.managed": "true"}, image_id=None)
        docker.write_file(spec.name, "/workspace/mine.sh", b"true\n", 0o755)
        assert "/workspace/mine.sh" in docker.added_files(spec.name)
        state = docker.inspect(spec.name)
        assert state is not None and state.restart_count == 0 and not state.oom_killed and state.user == ""
        made_at = seconds_of(state.created_at)
        assert made_at is not None and made_at <= (seconds_of(state.started_at) or 0)
        assert state.log_driver and state.ulimits == {} and state.devices == ()
        daemon = docker.info()
        assert "runc" in daemon.runtimes and version_like(daemon.version) and daemon.root
        image = docker.image(spec.image)
        assert image is not None and image.id == docker.image_id(spec.image) and image.architecture
        assert docker.image("sparkd-test/none:1") is None
    finally:
        docker.remove(spec.name)


def version_like(text: str) -> bool:
    return text[:1].isdigit() and "." in text


def test_what_the_steps_refuse_is_asked_while_it_blocks() -> None:
    """A blocked node goes on when its checks are good again: one that is never asked would let it go on at once, and for ever."""
    while_blocked = {each.id for each in gate.checks(tuple(Gate))}
    assert {"image.missing", "container.differs", "container.foreign"} <= while_blocked  # of engine/ensure.py
    assert not {"container.differs", "container.foreign"} & {
        each.id for each in gate.checks((Gate.HOST, Gate.CONTAINER))
    }
