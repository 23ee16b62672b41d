"""systemd over D-Bus: what it says becomes a UnitState. (Starting and stopping is tested in the lab's real systemd.)"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from sparkd.host.units import parse_state, unit_state
from sparkd.model.errors import SparkdError, UnreachableError

# As pystemd 0.15 gives the properties of a unit of systemd 252, shortened.
UNIT: dict[bytes, Any] = {
    b"LoadState": b"loaded",
    b"ActiveState": b"failed",
    b"SubState": b"failed",
    b"FragmentPath": b"/etc/systemd/system/vllm-ds4-head.service",
    b"DropInPaths": [b"/etc/systemd/system/vllm-ds4-head.service.d/override.conf"],
    b"InvocationID": [0x0A, 0xFF, 1],
    b"NeedDaemonReload": False,
}
SERVICE: dict[bytes, Any] = {
    b"Result": b"exit-code",
    b"MainPID": 0,
    b"ExecMainStatus": 127,
    b"ExecMainCode": 1,
    b"NRestarts": 41,
    b"Restart": b"on-failure",
    b"WorkingDirectory": b"",
    b"ExecStart": [
        (b"/usr/bin/docker", [b"docker", b"exec", b"c", b"bash", b"/w/x.sh"], False, 0, 0, 0, 0, 0, 1, 127),
    ],
    b"ExecStartPre": [(b"/bin/sleep", [b"/bin/sleep", b"5"], True, 0, 0, 0, 0, 0, 0, 0)],
}


def test_a_service_as_the_bus_tells_it() -> None:
    state = parse_state("vllm-ds4-head.service", UNIT, SERVICE)
    assert state.exec_start == (("/usr/bin/docker", "exec", "c", "bash", "/w/x.sh"),)  # the path, whatever argv[0] says
    assert state.exec_start_pre == state.ignored == (("/bin/sleep", "5"),)
    assert (state.exec_main_code, state.exec_main_status, state.n_restarts) == (1, 127, 41)
    assert state.invocation_id == "0aff01" and state.restart == "on-failure" and state.exists
    assert state.says == "failed (failed), Result: exit-code, status=127"


def test_what_is_no_service_or_does_not_exist_has_less_to_tell() -> None:
    missing = parse_state(
        "x.service", {b"LoadState": b"not-found", b"ActiveState": b"inactive", b"SubState": b"dead"}, {}
    )
    assert not missing.exists and missing.exec_start == () and missing.says == "not-found, inactive (dead)"


def test_systemd_answers_or_cannot_be_reached() -> None:
    """Never a third thing: a node without systemd is unknown, not bad."""
    pytest.importorskip("pystemd", reason="pystemd is built against libsystemd, which is not installed here")
    if Path("/run/systemd/system").is_dir():
        assert unit_state("-.mount").active_state == "active"
        assert not unit_state("no-such-unit-anywhere.service").exists
        with pytest.raises(SparkdError):
            unit_state("not a unit")
    else:
        with pytest.raises(UnreachableError, match=r"x\.service"):
            unit_state("x.service")


def test_a_bus_that_stands_still_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing, as a stopped dbus-daemon does: sd-bus would wait 90 s with Python's lock."""
    pytest.importorskip("pystemd", reason="pystemd is built against libsystemd, which is not installed here")
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd's own socket is the way around it here")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
    turns = 0
    over = threading.Event()

    def turn() -> None:
        nonlocal turns
        while not over.wait(0.02):
            turns += 1

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "bus"))
        silent.listen()
        other = threading.Thread(target=turn)
        other.start()
        try:
            with pytest.raises(UnreachableError, match="takes connections and does not answer"):
                unit_state("x.service")
        finally:
            over.set()
            other.join()
    assert turns > 10
