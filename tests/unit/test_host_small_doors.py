"""Small doors of the host: room on file systems, logind, thermal zones, the time of day."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sparkd.host import login, room, thermal, wall_clock
from sparkd.model.errors import SparkdError


def test_room_of_a_file_system(tmp_path: Path) -> None:
    found = room.room(tmp_path)
    assert found.total_bytes >= found.free_bytes > 0 and 0 <= found.used_share <= 1
    with pytest.raises(SparkdError, match="cannot look"):
        room.room(tmp_path / "none")


def test_logind_removes_by_default_and_the_last_setting_wins(tmp_path: Path) -> None:
    assert login.removes_ipc(tmp_path)
    etc = tmp_path / "etc/systemd"
    (etc / "logind.conf.d").mkdir(parents=True)
    (etc / "logind.conf").write_text("[Login]\n#RemoveIPC=yes\nRemoveIPC=no\n")
    assert not login.removes_ipc(tmp_path)
    (etc / "logind.conf.d/50-ours.conf").write_text("[Login]\nRemoveIPC = yes\n")
    assert login.removes_ipc(tmp_path)
    packaged = tmp_path / "usr/lib/systemd/logind.conf.d"
    packaged.mkdir(parents=True)
    (packaged / "60-vendor.conf").write_text("[Login]\nRemoveIPC=no\n")
    assert not login.removes_ipc(tmp_path)
    (etc / "logind.conf.d/60-vendor.conf").touch()  # of the same name in /etc: it hides the packaged one
    assert login.removes_ipc(tmp_path)


def test_lingering_users(tmp_path: Path) -> None:
    assert not login.lingers("milo", tmp_path)
    (tmp_path / "var/lib/systemd/linger").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/linger/milo").touch()
    assert login.lingers("milo", tmp_path)
    assert login.user_name(0) == "root" and login.user_name(54321) == "54321"


def test_thermal_zones_with_and_without_a_critical_point(tmp_path: Path) -> None:
    for number, files in (
        (0, {"type": "acpitz", "temp": "62000", "trip_point_0_type": "passive", "trip_point_0_temp": "95000",
             "trip_point_1_type": "critical", "trip_point_1_temp": "105000"}),
        (10, {"type": "acpitz", "temp": "41500"}),
        (2, {"type": "dead"}),
    ):  # fmt: skip
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        for name, text in files.items():
            (zone / name).write_text(text + "\n")
    assert thermal.zones(tmp_path) == [
        thermal.Zone("thermal_zone0", "acpitz", 62.0, 105.0),
        thermal.Zone("thermal_zone10", "acpitz", 41.5, None),
    ]
    assert thermal.zones(tmp_path / "none") == []


def test_the_clock_cannot_be_before_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    os.utime(tmp_path / "a", (1000, 1000))
    os.utime(tmp_path / "b", (2000, 2000))
    assert wall_clock.not_before((tmp_path / "a", tmp_path / "b", tmp_path / "none")) == 2000
    assert wall_clock.not_before() <= wall_clock.now() and abs(wall_clock.now() - time.time()) < 5
    assert wall_clock.date(0) == "1970-01-01" and wall_clock.synchronised() in (True, False, None)
