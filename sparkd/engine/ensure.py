"""Making the plan's container exist and run, and never replacing one.

What a writable layer holds may be the only copy of something, so a container that differs from the plan is a
finding for a person: it names the differences, what would be lost, and the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sparkd.engine.container import NothingRunsError
from sparkd.engine.spec import ContainerState, differences, notes
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import Cure, Finding, FindingError, bad
from sparkd.model.plan import ContainerSpec

if TYPE_CHECKING:
    from sparkd.engine.container import Docker

PROBE_MAX_S = 10.0
SETTLE_S = 1.0  # Docker says that a container has stopped before it has unmounted its root


@dataclass(frozen=True)
class Ensured:
    """How the container came to run. `says` is the sentence for the events."""

    action: Literal["kept", "started", "created"]
    says: str
    state: ContainerState


def ensure(docker: Docker, spec: ContainerSpec, labels: Mapping[str, str], *, image_id: str | None) -> Ensured:
    """Makes the plan's container exist and run; never replaces one.

    `image_id` is what the plan's image name means on this node (None: ask). Raises FindingError with
    `image.missing`, `container.differs`, `container.foreign`, `container.busy` or `container.start-failed`.
    """
    image_id = image_id or docker.image_id(spec.image)
    state = docker.inspect(spec.name)
    if state is None:
        return _created(docker, spec, labels, image_id)
    found = differences(state, spec, image_id=image_id, runtimes=docker.runtimes())
    if found:
        raise FindingError(_differs(docker, state, found))
    asides = notes(state, spec) if not state.is_ours else []
    made_by = "" if state.is_ours else "; made by hand, adopted as it is" + "".join(f": {note}" for note in asides[:1])
    if not state.running or state.status == "paused":
        return _started(docker, spec, state, made_by)
    try:
        _probe(docker, spec)
    except NothingRunsError as error:
        after = _started_anew(docker, spec)
        return Ensured("started", f"{error.message}: stopped and started again{made_by}", after)
    return Ensured("kept", f"container {spec.name} runs and matches the plan{made_by}", state)


def _created(docker: Docker, spec: ContainerSpec, labels: Mapping[str, str], image_id: str | None) -> Ensured:
    if image_id is None:
        raise FindingError(
            bad(
                "image.missing",
                f"image {spec.image} is not on this node",
                cure=Cure.PERSON,
                remedy=f"docker pull {spec.image}",
            )
        )
    try:
        state = docker.create_and_start(spec, labels)
    except UnreachableError:
        raise
    except SparkdError as error:
        raise FindingError(_start_failed(spec, error)) from error
    _require_running(docker, spec, state)
    return Ensured("created", f"container {spec.name} did not exist: created from the plan ({spec.image})", state)


def _started(docker: Docker, spec: ContainerSpec, state: ContainerState, made_by: str) -> Ensured:
    if state.status in ("removing", "restarting", "dead"):
        raise FindingError(
            bad(
                "container.busy",
                f"container {spec.name} is {state.status}",
                cure=Cure.RELAUNCH,
                remedy=f"docker rm -f {spec.name}  # only if it stays so",
            )
        )
    after = _begun(docker, spec, docker.unpause if state.status == "paused" else docker.start)
    was = "was made but never started" if state.status == "created" else f"was {state.status} ({state.exit_code})"
    return Ensured("started", f"container {spec.name} {was}: started{made_by}", after)


def _probe(docker: Docker, spec: ContainerSpec) -> None:
    docker.exec_run(spec.name, ["bash", "-c", ":"], timeout_s=PROBE_MAX_S)


def _started_anew(docker: Docker, spec: ContainerSpec) -> ContainerState:
    """Nothing can be run in it, so nothing can be launched in it. No replacement: what its writable layer holds stays.

    It happens where containerd and the shims were killed: Docker 20.10 takes the dead for alive, `docker start` sees nothing to
    do, and `docker restart` starts it and unmounts its root behind it, so that it lives and still runs nothing.
    """

    def stop_and_start(name: str) -> None:
        docker.stop(name, grace_s=0)
        time.sleep(SETTLE_S)
        docker.start(name)

    after = _begun(docker, spec, stop_and_start)
    try:
        _probe(docker, spec)
    except NothingRunsError as error:
        raise FindingError(_start_failed(spec, error)) from error
    return after


def _begun(docker: Docker, spec: ContainerSpec, begin: Callable[[str], None]) -> ContainerState:
    """The container as it is after `begin`. Raises FindingError `container.start-failed` where it does not run then."""
    try:
        begin(spec.name)
    except UnreachableError:
        raise
    except SparkdError as error:
        raise FindingError(_start_failed(spec, error)) from error
    after = docker.inspect(spec.name)
    if after is None:
        raise FindingError(_start_failed(spec, SparkdError("it was removed while it was started")))
    _require_running(docker, spec, after)
    return after


def _start_failed(spec: ContainerSpec, error: SparkdError, *output: str) -> Finding:
    return bad(
        "container.start-failed",
        f"container {spec.name} could not be started",
        cure=Cure.RELAUNCH,  # a driver that is still loading, a device that is not there yet
        remedy=f"docker start {spec.name}; journalctl -u docker -n 50",
        evidence=(error.message, *output),
    )


def _require_running(docker: Docker, spec: ContainerSpec, state: ContainerState) -> None:
    """The daemon may start a container whose program ends at once; what it printed says why."""
    if not state.running:
        ended = SparkdError(f"its command {' '.join(spec.command)} ended with status {state.exit_code}")
        raise FindingError(_start_failed(spec, ended, *docker.last_output(spec.name)))


def _differs(docker: Docker, state: ContainerState, found: list[str]) -> Finding:
    lost = docker.writable_layer(state.name)
    loses = "removing it would lose from its writable layer:" if lost else "its writable layer holds nothing"
    who = "is sparkd's own" if state.is_ours else "was not made by sparkd"
    return bad(
        "container.differs" if state.is_ours else "container.foreign",
        f"container {state.name} {who} and differs from the plan: {'; '.join(found)}",
        cure=Cure.PERSON,
        remedy=f"save what you need of it, then: docker rm -f {state.name}  # sparkd makes it anew from the plan",
        evidence=(*found, loses, *lost),
    )
