"""The container, through the Docker Engine API. The only module that opens Docker; every call has a limit.

`Docker` is a door: it carries out and reports. What should become of a container that is not as the plan
wants it is decided in `ensure.py` and `spec.py`.
"""

from __future__ import annotations

import logging
import posixpath
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sparkd.engine import archive
from sparkd.engine.spec import (
    LABEL_MANAGED,
    ContainerState,
    DaemonState,
    ImageState,
    daemon_of,
    differences,
    image_of,
    state_of,
)
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.plan import ContainerSpec

if TYPE_CHECKING:
    from docker import APIClient

__all__ = ["ContainerEvents", "ContainerState", "DaemonState", "Docker", "ImageState", "differences"]

# Names become parts of the daemon's URLs, and not all of them come from our configuration: `docker exec NAME` of a unit.
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]*")
_WATCHED_EVENTS = ("start", "die", "destroy", "oom")
_TAR_MORE_BYTES = 64 * 1024  # headers and padding
_SYMLINKS_MAX = 8
_EXEC_OUTPUT_MAX_BYTES = 256 * 1024
_CONNECTIONS_KEPT = 2  # idle ones; more are made while more is asked at once

GREETING_MAX_S = 3.0  # a daemon that lives answers a greeting in milliseconds, however long its work takes
HEARD_S = 2.0  # one that answered so recently is not greeted again
SAME_FAILURE_S = 0.5  # questions that follow each other meet one failure, not one each


class ContainerEvents:
    """The daemon's events about one container, as `docker events` gives them.

    The iteration ends when it is closed or when the daemon goes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import requests

        try:
            for event in self._stream:
                if isinstance(event, dict):
                    yield event
        except (requests.RequestException, ValueError, OSError):
            return  # closed under us, or the daemon died: either way there is nothing more to hear

    def close(self) -> None:
        """Ends the iteration, from any thread, at once."""
        with suppress(OSError, AttributeError):  # the other side was faster
            self._stream.close()


class NothingRunsError(UnreachableError):
    """Docker can run nothing in a container that it calls running."""


class Docker:
    """A Docker Engine. Connects at the first call and again after a failure, so it may be made before the daemon is up.

    Every method raises UnreachableError when the daemon does not answer within `timeout_s`, and
    SparkdError with the daemon's own words when it refuses.
    """

    def __init__(self, base_url: str = "unix:///var/run/docker.sock", timeout_s: float = 20) -> None:
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._client: APIClient | None = None
        self._connecting = threading.Lock()
        self._failure: Exception | None = None  # of the last attempt to connect
        self._failed_at = 0.0
        self._heard_at = 0.0

    def close(self) -> None:
        with self._connecting:
            if self._client is not None:
                self._client.close()
                self._client = None

    # -- what is there -------------------------------------------------------------------------------------------

    def image_id(self, image: str) -> str | None:
        """The id ("sha256:...") that the name means on this node, None where there is no such image."""
        found = self.image(image)
        return None if found is None else found.id

    def image(self, image: str) -> ImageState | None:
        """The image of that name or id on this node, None where there is none."""
        if not _IMAGE.fullmatch(image) or ".." in image:
            return None
        with self._asking(f"image {image}") as api:
            found = _or_none(lambda: api.inspect_image(image))  # type: ignore[no-untyped-call]
        return None if found is None else image_of(found)

    def inspect(self, name: str) -> ContainerState | None:
        if not _CONTAINER.fullmatch(name):
            return None
        with self._asking(f"container {name}") as api:
            found = _or_none(lambda: api.inspect_container(name))
        return None if found is None else state_of(found)

    def runtimes(self) -> tuple[str, ...]:
        """The OCI runtimes that the daemon knows ("runc", "nvidia")."""
        return self.info().runtimes

    def info(self) -> DaemonState:
        with self._asking("daemon") as api:
            return daemon_of(api.info())

    def writable_layer(self, name: str, *, paths_max: int = 40) -> list[str]:
        """What removing the container would lose, as `docker diff` says it ("A /workspace/run.sh"), without the
        directories that changed only because something in them did."""
        changes = self._diff(name)
        paths = [str(change["Path"]) for change in changes]
        parents = {posixpath.dirname(path) for path in paths}
        lines = [f"{'CAD'[c['Kind']]} {c['Path']}" for c in changes if not (c["Kind"] == 0 and c["Path"] in parents)]
        if len(lines) > paths_max:
            lines[paths_max:] = [f"... and {len(lines) - paths_max} more"]
        return lines

    def added_files(self, name: str) -> list[str]:
        """Every path that was made in the container's writable layer: what only this container has."""
        return [str(change["Path"]) for change in self._diff(name) if change["Kind"] == 1]

    def _diff(self, name: str) -> list[dict[str, Any]]:
        with self._asking(f"container {name}") as api:
            return api.diff(name) or []

    def last_output(self, name: str, *, lines: int = 5) -> tuple[str, ...]:
        """The end of what the container's own first process printed."""
        with self._asking(f"container {name}") as api:
            text = api.logs(name, tail=lines).decode("utf-8", "replace")
        return tuple(text.splitlines()[-lines:])

    def events(self, name: str, since: float | None = None) -> ContainerEvents:
        """Starts, deaths, removals and out-of-memory kills of the container of that name, also of one made later.

        `since` is in seconds of the daemon's clock; events are kept by the daemon for a while, so a watcher
        that was away misses nothing. Iterating blocks without a limit: do it in a thread, end it by `close`.
        """
        with self._asking("events") as api:
            filters = {"type": "container", "container": name, "event": list(_WATCHED_EVENTS)}
            # The API takes fractions of a second as text; the stubs know only whole ones.
            return ContainerEvents(api.events(since=since and f"{since:.9f}", filters=filters, decode=True))  # type: ignore[call-overload]

    # -- what is done --------------------------------------------------------------------------------------------

    def create_and_start(self, spec: ContainerSpec, labels: Mapping[str, str]) -> ContainerState:
        """Makes the plan's container and starts it. Restart policy "no": sparkd supervises, both nodes or none."""
        known_runtimes = self.runtimes()
        with self._asking(f"container {spec.name}") as api:
            host = api.create_host_config(
                binds=list(spec.volumes),
                network_mode=spec.network,
                ipc_mode=spec.ipc,
                privileged=spec.privileged,
                init=spec.init,
                runtime=spec.runtime if spec.runtime in known_runtimes else None,
                device_requests=_device_requests(spec.gpus),  # type: ignore[arg-type]  # plain dicts are documented
                restart_policy={"Name": "no"},
            )
            made = api.create_container(
                spec.image,
                command=list(spec.command),
                name=spec.name,
                labels=dict(labels) | {LABEL_MANAGED: "true"},
                host_config=host,
                use_config_proxy=False,
            )
        self.start(made["Id"])
        state = self.inspect(spec.name)
        if state is None:
            raise SparkdError(
                f"container {spec.name} went away while it was started", hint=f"docker ps -a | grep {spec.name}"
            )
        return state

    def start(self, name: str) -> None:
        with self._asking(f"container {name}") as api:
            api.start(name)

    def unpause(self, name: str) -> None:
        with self._asking(f"container {name}") as api:
            api.unpause(name)

    def stop(self, name: str, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`. A container that is not there or not running is stopped already."""
        with self._asking(f"container {name}") as api:
            _or_none(lambda: api.stop(name, timeout=int(grace_s)))

    def remove(self, name: str) -> None:
        """Removes the container, running or not, and its writable layer with it. Gone already is fine."""
        with self._asking(f"container {name}") as api:
            _or_none(lambda: api.remove_container(name, force=True))

    def exec_run(self, name: str, argv: list[str], *, timeout_s: float) -> tuple[int, str]:
        """Runs a program in the running container; its exit status, and both outputs as they came.

        Raises UnreachableError where it does not end within `timeout_s` (it is then left to itself: the API
        has no way to end it), NothingRunsError where Docker could not begin it although it calls the container running. 126
        and 127 are the shell's "cannot execute" and "not found", here as there.
        """
        import urllib3.exceptions

        deadline = time.monotonic() + timeout_s
        with self._asking(f"{argv[0]} in container {name}") as api:
            job = api.exec_create(name, argv)["Id"]
            # Not exec_start: its hijacked socket is read without a limit, and bytes that came with the
            # response's header are lost. Without the Upgrade header the daemon streams an ordinary body.
            with api.post(
                f"{api.base_url}/v{api.api_version}/exec/{job}/start",
                json={"Detach": False, "Tty": False},
                stream=True,
                timeout=(self._timeout_s, timeout_s),
            ) as response:
                if response.status_code not in (200, 400):  # 400: the program could not be started; the body says why
                    raise SparkdError(f"Docker cannot run {argv[0]} in container {name}: {response.text.strip()}")
                output = bytearray()
                try:
                    for chunk in response.raw.stream(16384, decode_content=False):
                        if len(output) < _EXEC_OUTPUT_MAX_BYTES:
                            output += chunk
                        if time.monotonic() > deadline:
                            raise TimeoutError
                except (TimeoutError, urllib3.exceptions.ReadTimeoutError) as error:
                    too_long = f"{argv[0]} in container {name} did not end within {timeout_s:.0f} s"
                    raise UnreachableError(too_long) from error
            status = api.exec_inspect(job)["ExitCode"]
        if status is None:
            raise UnreachableError(
                f"{argv[0]} in container {name} has no exit status yet", hint="is the container stopping?"
            )
        said = _demultiplexed(bytes(output))
        if _never_began(int(status), said, argv[0]):
            remedy = f"docker stop {name}; docker start {name}"
            raise NothingRunsError(f"Docker can run nothing in container {name}: {said.strip()}", hint=remedy)
        return int(status), said

    # -- files ---------------------------------------------------------------------------------------------------

    def path_stat(self, name: str, path: str) -> archive.PathStat | None:
        """What stands at that path inside the container, running or stopped, mounts included. None: nothing does.

        Raises SparkdError where there is no such container.
        """
        if not _CONTAINER.fullmatch(name):
            raise SparkdError(f"there is no container {name!r}")
        with self._asking(f"{path} in container {name}") as api:
            response = api.head(
                f"{api.base_url}/v{api.api_version}/containers/{name}/archive",
                params={"path": path},
                timeout=self._timeout_s,
            )
        header = response.headers.get("X-Docker-Container-Path-Stat", "")
        if response.status_code == 404:
            if self.inspect(name) is None:
                raise SparkdError(f"there is no container {name}")
            return None
        found = archive.parse_stat(header)
        if found is None:
            raise SparkdError(f"Docker cannot look at {path} in container {name} (HTTP {response.status_code})")
        return found

    def path_exists(self, name: str, path: str) -> bool | None:
        """None: there is no such container, so nobody can tell."""
        if self.inspect(name) is None:
            return None
        return self.path_stat(name, path) is not None

    def read_file(self, name: str, path: str, max_bytes: int) -> bytes | None:
        """The contents of a regular file, following symbolic links. None: no such file.

        Raises SparkdError where it is larger than `max_bytes`, or a directory.
        """
        for _ in range(_SYMLINKS_MAX):
            found = self.path_stat(name, path)
            if found is None:
                return None
            if not found.link_target:
                break
            path = posixpath.join(posixpath.dirname(path), found.link_target)
        else:
            raise SparkdError(f"{path} in container {name} is a loop of symbolic links")
        if found.is_directory or found.size > max_bytes:
            what = "a directory" if found.is_directory else f"{found.size} bytes, more than the {max_bytes} expected"
            raise SparkdError(f"{path} in container {name} is {what}")
        with self._asking(f"{path} in container {name}") as api:
            stream, _ = api.get_archive(name, path)
            packed = bytearray()
            for part in stream:  # a file may have grown since it was looked at
                packed += part
                if len(packed) > max_bytes + _TAR_MORE_BYTES:
                    raise SparkdError(f"{path} in container {name} is more than the {max_bytes} bytes expected")
            return archive.unpack_one(bytes(packed))

    def write_file(self, name: str, path: str, data: bytes, mode: int) -> None:
        """Puts a file at an absolute path, owned by root, making directories as needed. Replaces a file, never more."""
        there = self.path_stat(name, path)
        if there is not None and there.is_directory:  # Docker would take the whole tree away
            raise SparkdError(f"{path} in container {name} is a directory, a file was to be written there")
        directory = existing = posixpath.dirname(path)
        while existing != "/" and self.path_stat(name, existing) is None:
            existing = posixpath.dirname(existing)
        making = archive.missing_directories(directory, existing)
        inside = posixpath.join(making[-1], posixpath.basename(path)) if making else posixpath.basename(path)
        with self._asking(f"{path} in container {name}") as api:
            api.put_archive(name, existing, archive.pack(inside, data, mode, directories=making))

    # -- the connection ------------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, what: str) -> Iterator[APIClient]:
        """A connected client; whatever goes wrong with it becomes one of our errors."""
        import docker.errors
        import requests
        import urllib3.exceptions

        transport_errors = (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError)
        try:
            yield self._connected()
        except docker.errors.APIError as error:
            raise SparkdError(f"Docker refused ({what}): {error.explanation or error}") from error
        except (*transport_errors, OSError) as error:
            self.close()
            raise UnreachableError(
                f"Docker does not answer ({what}): {_root_of(error)}", hint="systemctl status docker"
            ) from error

    def _connected(self) -> APIClient:
        """A client whose daemon answered a moment ago: one that hangs is found out soon, whatever is to be asked of it."""
        came_at = time.monotonic()
        with self._connecting:
            if self._failure is not None and self._failed_at > came_at - SAME_FAILURE_S:
                # Of the attempt that we stood in line for, or just made: one of our own would take as long again.
                raise self._failure.with_traceback(None)
            if self._client is not None and came_at - self._heard_at < HEARD_S:
                return self._client
            try:
                self._client = self._greeted(self._client)
            except Exception as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise
            self._failure, self._heard_at = None, time.monotonic()
            return self._client

    def _greeted(self, client: APIClient | None) -> APIClient:
        from docker import APIClient

        limit_s: Any = min(GREETING_MAX_S, self._timeout_s)  # the stubs know whole seconds only
        if client is not None:
            client.get(f"{client.base_url}/_ping", timeout=limit_s).raise_for_status()
            return client
        # "auto" asks the daemon for its version, so this is the first call and fails like one.
        client = APIClient(base_url=self._base_url, version="auto", timeout=limit_s)
        _one_pool(client, self._timeout_s)
        work_s: Any = self._timeout_s
        client.timeout = work_s
        return client


def _one_pool(client: APIClient, timeout_s: float) -> None:
    """docker-py has a pool of connections for each URL, 25 of them, and ids of containers and execs are in URLs: an idle
    daemon would hold 25 sockets open here and in dockerd. It is one socket file, so one pool does."""
    from docker.transport import UnixHTTPAdapter

    class OnePool(UnixHTTPAdapter):
        def get_connection(self, url: Any, proxies: Any = None) -> Any:
            return super().get_connection(client.base_url, proxies)

    several = client.get_adapter(client.base_url)
    if isinstance(several, UnixHTTPAdapter):
        # More at once than are kept: said as a warning, though nothing is wrong with it.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        socket_url = f"http+unix://{several.socket_path}"
        client.mount("http+docker://", OnePool(socket_url, timeout_s, max_pool_size=_CONNECTIONS_KEPT))  # type: ignore[arg-type]
        several.close()


def _or_none(call: Any) -> Any:
    """The call's answer, or None where the daemon says that there is no such thing."""
    import docker.errors

    try:
        return call()
    except docker.errors.NotFound:
        return None


def _device_requests(gpus: str | None) -> list[dict[str, Any]] | None:
    """`--gpus`: "all", a number, or "device=0,1"."""
    if not gpus:
        return None
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]], "Options": {}}
    if gpus.startswith("device="):
        request["DeviceIDs"] = gpus.removeprefix("device=").split(",")
    else:
        request["Count"] = -1 if gpus == "all" else int(gpus)
    return [request]


def _demultiplexed(stream: bytes) -> str:
    """Docker's framing of the two outputs (8 bytes: kind, 3 unused, length) taken off, their order kept."""
    text, at = bytearray(), 0
    while at + 8 <= len(stream) and stream[at] in (0, 1, 2):
        length = int.from_bytes(stream[at + 4 : at + 8], "big")
        text += stream[at + 8 : at + 8 + length]
        at += 8 + length
    return (bytes(text) if at else stream).decode("utf-8", "replace")


def _never_began(status: int, said: str, program: str) -> bool:
    """Docker's own failure comes as 126 or 127 too, and its words in place of the program's output: "container is not running"
    where containerd and the shim were killed, "... error starting setns process: ..." where Docker has unmounted the root of
    what lives, "connection error: desc = ..." while containerd is away (20.10). What is said of the program names it: `exec:
    "bash": executable file not found`, `bash: FILE: No such file or directory`."""
    plain = said.replace('\\"', '"')  # newer ones answer with JSON
    about_program = f'exec: "{program}"' in plain or f"{program}:" in plain
    return status in (126, 127) and len(said.strip().splitlines()) == 1 and not about_program


def _root_of(error: BaseException) -> str:
    """The innermost cause in a few words: urllib3 wraps a "connection refused" four times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error).strip() or type(error).__name__
