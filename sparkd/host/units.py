"""systemd's units, over D-Bus. The only module that opens it, and it does so lazily: pystemd costs 5 MiB.

pystemd holds Python's global lock while it waits for an answer, so only calls that systemd answers at once go through
it: a job is queued and then asked after, and `reload_daemon`, which systemd answers when it is done, is systemctl's. A
socket is greeted first by plain Python: of one that takes connections and says nothing, sd-bus would wait 90 s for a word.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sparkd.host.run import run
from sparkd.model.errors import SparkdError, UnreachableError

SYSTEMD = b"org.freedesktop.systemd1"
MANAGER_PATH = b"/org/freedesktop/systemd1"
MANAGER = b"org.freedesktop.systemd1.Manager"
UNIT = b"org.freedesktop.systemd1.Unit"
SERVICE = b"org.freedesktop.systemd1.Service"
PROPERTIES = b"org.freedesktop.DBus.Properties"

BUS_SOCKET = "/run/dbus/system_bus_socket"
PRIVATE_SOCKET = "/run/systemd/private"  # systemd's own, root only: works while the bus is away, as systemctl does
GREETING_MAX_S = 2.0  # a bus that lives answers in a millisecond
CALL_TIMEOUT = "10s"  # one call; sd-bus would wait 25 s, longer than our watchdog should have to
POLL_FIRST_S, POLL_MAX_S = 0.02, 0.2  # between two looks at a job: most are done at once
RELOAD_MAX_S = 60.0
SYSTEMD_RUNS = Path("/run/systemd/system")  # sd_booted(3)
# Connections lost in a row, POLL_MAX_S apart: systemd is back within a second, on a busy node within five.
LOST_MAX = 25
# What pystemd has no class for.
LOST = {errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, errno.EPIPE, errno.ESHUTDOWN}
INFINITY_USEC = 2**64 - 1  # how D-Bus says "never"

Argv = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class UnitState:
    """A unit as systemd has it loaded. Commands have the program's path as their first element."""

    name: str
    load_state: str  # loaded, not-found, bad-setting, error, masked
    active_state: str  # active, activating, inactive, deactivating, failed, reloading
    sub_state: str
    result: str = ""  # success, exit-code, signal, timeout, start-limit-hit, ...; empty for what is no service
    main_pid: int = 0  # 0: none
    exec_main_status: int = 0  # exit status or signal of the last main process
    exec_main_code: int = 0  # of waitid(2): 1 exited, 2 killed, 3 dumped; 0 none has ended yet
    fragment_path: str = ""
    drop_ins: tuple[str, ...] = ()
    exec_start: tuple[Argv, ...] = ()
    exec_start_pre: tuple[Argv, ...] = ()
    n_restarts: int = 0
    invocation_id: str = ""  # hex, another one at each start
    restart: str = ""  # no, on-failure, always, ...
    working_directory: str = ""
    ignored: tuple[Argv, ...] = ()  # commands written with "-": their failure does not matter to systemd
    needs_reload: bool = False  # its files changed on disk since systemd read them
    kind: str = ""  # Type=: simple, exec, oneshot, notify, forking, ...
    remains: bool = False  # RemainAfterExit=: it counts as active when its process has ended
    file_state: str = ""  # enabled, disabled, static, masked, generated, ...; empty where there is no file
    start_max_s: float | None = None  # TimeoutStartSec=; None: infinity
    changed_at_s: float | None = None  # on the monotonic clock: when its active or sub state last changed
    exec_stop: tuple[Argv, ...] = ()
    after: tuple[str, ...] = ()  # units that are started before it

    @property
    def exists(self) -> bool:
        return self.load_state not in ("not-found", "")

    @property
    def says(self) -> str:
        """How it stands, as `systemctl status` would put it: "failed (failed), Result: exit-code, status=127"."""
        words = f"{self.active_state} ({self.sub_state})"
        if self.load_state != "loaded":
            return f"{self.load_state}, {words}"
        if self.result and self.result != "success":
            code = {1: "status", 2: "signal", 3: "signal"}.get(self.exec_main_code)
            words += f", Result: {self.result}" + (f", {code}={self.exec_main_status}" if code else "")
        return words


# --- asking ---------------------------------------------------------------------------------------


def unit_state(name: str) -> UnitState:
    """Raises UnreachableError without systemd, SparkdError when it refuses the name.

    systemd forgets the status of a unit that ended well and that no loaded unit refers to: `exec_main_code` is 0 then.
    """

    def ask(bus: Any) -> UnitState:
        return _state(bus, _path(bus, name), name)

    return _asking(name, ask)


def parse_state(name: str, unit: Mapping[bytes, Any], service: Mapping[bytes, Any]) -> UnitState:
    """Properties of the Unit and Service interfaces, as D-Bus gives them (`service` is empty for other kinds)."""
    commands = {key: [_command(raw) for raw in service.get(key, [])] for key in (b"ExecStart", b"ExecStartPre")}
    return UnitState(
        name=name,
        load_state=_text(unit, b"LoadState"),
        active_state=_text(unit, b"ActiveState"),
        sub_state=_text(unit, b"SubState"),
        result=_text(service, b"Result"),
        main_pid=int(service.get(b"MainPID", 0)),
        exec_main_status=int(service.get(b"ExecMainStatus", 0)),
        exec_main_code=int(service.get(b"ExecMainCode", 0)),
        fragment_path=_text(unit, b"FragmentPath"),
        drop_ins=tuple(os.fsdecode(path) for path in unit.get(b"DropInPaths", [])),
        exec_start=tuple(argv for argv, _ in commands[b"ExecStart"]),
        exec_start_pre=tuple(argv for argv, _ in commands[b"ExecStartPre"]),
        n_restarts=int(service.get(b"NRestarts", 0)),
        invocation_id=bytes(unit.get(b"InvocationID", [])).hex(),
        restart=_text(service, b"Restart"),
        working_directory=_text(service, b"WorkingDirectory"),
        ignored=tuple(argv for both in commands.values() for argv, ignored in both if ignored),
        needs_reload=bool(unit.get(b"NeedDaemonReload", False)),
        kind=_text(service, b"Type"),
        remains=bool(service.get(b"RemainAfterExit", False)),
        file_state=_text(unit, b"UnitFileState"),
        start_max_s=_seconds(service.get(b"TimeoutStartUSec", INFINITY_USEC)),
        changed_at_s=_seconds(unit.get(b"StateChangeTimestampMonotonic", 0) or INFINITY_USEC),
        exec_stop=tuple(_command(raw)[0] for raw in service.get(b"ExecStop", [])),
        after=tuple(os.fsdecode(name) for name in unit.get(b"After", [])),
    )


def _command(raw: tuple[Any, ...]) -> tuple[Argv, bool]:
    """(path, argv, ignore failure, times and statuses of the last run...), D-Bus type (sasbttttuii)."""
    path, argv, ignored = raw[:3]
    return (os.fsdecode(path), *(os.fsdecode(word) for word in argv[1:])), bool(ignored)


def _seconds(usec: int) -> float | None:
    return None if usec >= INFINITY_USEC else usec / 1e6


def _text(properties: Mapping[bytes, Any], key: bytes) -> str:
    return os.fsdecode(properties.get(key, b""))


# --- changing -------------------------------------------------------------------------------------


def start_unit(name: str, *, timeout_s: float) -> UnitState:
    """Starts it and waits for the job. A service that ran and ended by itself meanwhile is returned as it is.

    Raises SparkdError naming the unit when it does not exist, fails to start, or is not done within `timeout_s`.
    """
    before: UnitState | None = None

    def begin(bus: Any) -> UnitState:
        nonlocal before
        path = _path(bus, name)
        _hold(bus, name)
        now = _state(bus, path, name)
        if not now.exists:
            raise SparkdError(
                "there is no such unit", where=name, hint=f"systemctl cat {name}; systemctl daemon-reload"
            )
        # Another invocation: it was begun before the connection was lost.
        if before is None or now.invocation_id == before.invocation_id:
            before = before or now
            _call(bus, b"StartUnit", b"ss", name.encode(), b"replace")
        return _wait_for_job(bus, path, name, "start", timeout_s)

    state = _asking(name, begin)
    ran = state.active_state == "active" or before is None or state.invocation_id != before.invocation_id
    if state.active_state == "failed" or not ran:
        raise SparkdError(f"did not start: {state.says}", where=name, hint=f"journalctl -u {name} -n 50")
    return state


def stop_unit(name: str, *, timeout_s: float) -> UnitState:
    """Stops it and waits for the job; one that does not run, or does not exist, is stopped already."""

    def end(bus: Any) -> UnitState:
        path = _path(bus, name)
        _hold(bus, name)
        before = _state(bus, path, name)
        if not before.exists or before.active_state in ("inactive", "failed"):
            return before
        _call(bus, b"StopUnit", b"ss", name.encode(), b"replace")
        return _wait_for_job(bus, path, name, "stop", timeout_s)

    return _asking(name, end)


def reset_failed(name: str) -> None:
    """Forgets that it failed, and why. Nothing to forget is fine."""

    def forget(bus: Any) -> None:
        _hold(bus, name)
        if _state(bus, _path(bus, name), name).active_state == "failed":
            _call(bus, b"ResetFailedUnit", b"s", name.encode())

    _asking(name, forget)


def reload_daemon() -> None:
    """Makes systemd read its unit files again. Takes a second or more on a big machine."""
    run(["systemctl", "daemon-reload"], timeout_s=RELOAD_MAX_S, check=True)


def _wait_for_job(bus: Any, path: bytes, name: str, job: str, timeout_s: float) -> UnitState:
    until = time.monotonic() + timeout_s
    pause_s = POLL_FIRST_S
    while True:
        if bus.get_property(SYSTEMD, path, UNIT, b"Job", b"(uo)")[0] == 0:
            return _state(bus, path, name)
        if time.monotonic() >= until:
            state = _state(bus, path, name)
            raise SparkdError(f"its {job} is not done after {timeout_s:g} s: {state.says}", where=name)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_MAX_S)


# --- the bus --------------------------------------------------------------------------------------


class _LostError(UnreachableError):
    """The connection broke, or nobody took it: the bus is restarted or systemd executes itself anew, for a moment."""


def _asking(name: str, work: Callable[[Any], T]) -> T:
    """`work` with a connection, and anew with another one where it was lost meanwhile: it may be done more than once."""
    for _ in range(LOST_MAX):
        try:
            with _systemd(name) as bus:
                return work(bus)
        except _LostError:
            if not SYSTEMD_RUNS.is_dir():  # nobody to wait for
                raise
            time.sleep(POLL_MAX_S)
    with _systemd(name) as bus:
        return work(bus)


@contextlib.contextmanager
def _systemd(name: str) -> Iterator[Any]:
    """A connection of its own for each use, so that threads share none. Errors of D-Bus become ours, naming the unit."""
    os.environ.setdefault("SYSTEMD_BUS_TIMEOUT", CALL_TIMEOUT)  # read by libsystemd when it connects
    try:
        _load_pystemd()
        from pystemd import dbusexc, dbuslib
    except ImportError as error:
        raise UnreachableError(f"cannot talk to systemd: {error}", where=name, hint="pip install pystemd") from None
    ways = {
        _bus_socket(): dbuslib.DBus,
        PRIVATE_SOCKET: lambda: dbuslib.DBusAddress(f"unix:path={PRIVATE_SOCKET}".encode(), True),
    }
    bus = _open(ways, name)
    lost = (
        dbusexc.DBusDisconnectedError,
        dbusexc.DBusNoReplyError,
        dbusexc.DBusServiceUnknownError,
        dbusexc.DBusNameHasNoOwnerError,
        dbusexc.DBusNoServerError,
        dbusexc.DBusConnectionRefusedError,
    )
    try:
        yield bus
    except (dbusexc.DBusTimeoutError, dbusexc.DBusTimedOutError) as error:
        raise UnreachableError(f"systemd does not answer: {_reason(error)}", where=name) from None
    except lost as error:
        raise _LostError(f"systemd does not answer: {_reason(error)}", where=name) from None
    except (dbusexc.DBusAccessDeniedError, dbusexc.DBusInteractiveAuthorizationRequiredError) as error:
        raise SparkdError(f"systemd does not allow it: {_reason(error)}", where=name, hint="run as root") from None
    except dbusexc.DBusBaseError as error:
        if abs(error.errno) in LOST:
            raise _LostError(f"systemd does not answer: {_reason(error)}", where=name) from None
        raise SparkdError(f"systemd refused: {_reason(error)}", where=name) from None
    finally:
        bus.close()


def _load_pystemd() -> None:
    """The package without its own first lines: those import lxml to read what an interface can do, which nobody asks here,
    and cost half of its 10 MiB. Raises ImportError."""
    if "pystemd" not in sys.modules:
        found = importlib.util.find_spec("pystemd")
        if found is None:
            raise ImportError("there is no pystemd")
        sys.modules["pystemd"] = importlib.util.module_from_spec(found)


def _bus_socket() -> str:
    """Where the system bus listens; empty for an address that is no socket file, which is then tried unseen."""
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={BUS_SOCKET}")
    kind, _, path = address.partition("path=")
    return path.partition(",")[0].partition(";")[0] if kind == "unix:" else ""


def _open(ways: Mapping[str, Callable[[], Any]], name: str) -> Any:
    """The first way in that works. Raises _LostError, UnreachableError: what was wrong with the first, when none does."""
    from pystemd.dbusexc import DBusBaseError

    first: UnreachableError | None = None
    for path, way in ways.items():
        try:
            if path:
                _greet(path)
            bus = way()
            bus.open()
        except TimeoutError:
            says = f"cannot reach systemd: {path} takes connections and does not answer"
            first = first or UnreachableError(says, where=name, hint="systemctl status dbus")
        except (OSError, DBusBaseError) as error:
            says = f"cannot reach systemd: {os.strerror(abs(error.errno or errno.EIO))}"
            first = first or _LostError(says, where=name, hint="is systemd PID 1 here?")
        else:
            return bus
    assert first is not None
    raise first


def _greet(path: str) -> None:
    """The first words of D-Bus, and an answer to them. Raises TimeoutError, OSError."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(GREETING_MAX_S)
        asking.connect(path)
        asking.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        if not asking.recv(256):
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")


def _hold(bus: Any, name: str) -> None:
    """Keeps systemd from forgetting the unit, and how it ended, as long as this connection lasts.

    It forgets one that is inactive and that nothing refers to, at once. Not to be had on systemd's private socket.
    """
    from pystemd.dbusexc import DBusBaseError

    with contextlib.suppress(DBusBaseError):
        _call(bus, b"RefUnit", b"s", name.encode())


def _path(bus: Any, name: str) -> bytes:
    """D-Bus path of a unit, which systemd loads for it: a unit without a file has one as well, as "not-found"."""
    path: bytes = _call(bus, b"LoadUnit", b"s", name.encode())
    return path


def _state(bus: Any, path: bytes, name: str) -> UnitState:
    unit = _properties(bus, path, UNIT)
    service = _properties(bus, path, SERVICE) if name.endswith(".service") else {}
    return parse_state(name, unit, service)


def _properties(bus: Any, path: bytes, interface: bytes) -> dict[bytes, Any]:
    from pystemd.dbuslib import apply_signature

    answer = bus.call_method(SYSTEMD, path, PROPERTIES, b"GetAll", apply_signature(b"s", [interface]))
    properties: dict[bytes, Any] = answer.body
    return properties


def _call(bus: Any, method: bytes, signature: bytes, *arguments: bytes) -> Any:
    from pystemd.dbuslib import apply_signature

    return bus.call_method(SYSTEMD, MANAGER_PATH, MANAGER, method, apply_signature(signature, list(arguments))).body


def _reason(error: Any) -> str:
    """systemd's own words, which are good; the errno behind them only where there are none."""
    message = error.err_message
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    return text or os.strerror(abs(error.errno))
