"""Kernel log, journal and pstore: real output, real processes in the place of journalctl, real files."""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path

import pytest

from sparkd.host import kernel_log
from sparkd.host.kernel_log import Boot, parse_boots, pstore
from sparkd.model.errors import SparkdError, UnreachableError

DATA = Path(__file__).resolve().parents[1] / "data/boots"

# As before systemd 254: no heading, a dash between the times.
OLDER = """\
-2 7f3c1b9b6d2e4d1f9f0c4d8f4a1b2c3d Fri 2022-01-14 07:44:00 UTC—Fri 2022-01-14 08:59:00 UTC
-1 9b2c4d5e6f708192a3b4c5d6e7f80912 Sat 2022-01-15 07:44:00 UTC—Sat 2022-01-15 08:59:07 UTC
 0 af3d6e1f2a3b4c5d6e7f8091a2b3c4d5 Sun 2022-01-16 09:12:00 UTC—Sun 2022-01-16 10:00:00 UTC
"""
NEWER = """\
IDX BOOT ID                          FIRST ENTRY                 LAST ENTRY
 -1 9b2c4d5e6f708192a3b4c5d6e7f80912 Sat 2022-01-15 07:44:00 UTC Sat 2022-01-15 08:59:07 UTC
  0 af3d6e1f2a3b4c5d6e7f8091a2b3c4d5 Sun 2022-01-16 09:12:00 UTC Sun 2022-01-16 10:00:00 UTC
"""


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for programs that are found before all others."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def program(bin: Path, name: str, body: str) -> None:
    (bin / name).write_text(f"#!/bin/sh\n{body}\n")
    (bin / name).chmod(0o755)


# --- boots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [OLDER, NEWER])
def test_boots_are_read_from_either_form(text: str) -> None:
    before, this = parse_boots(text)[-2:]
    assert before == Boot(-1, "9b2c4d5e6f708192a3b4c5d6e7f80912", 1642232640.0, 1642237147.0)
    assert (this.index, this.last) == (0, 1642327200.0)


def test_boots_of_a_real_node() -> None:
    found = parse_boots((DATA / "list-boots-252.txt").read_text())
    assert [boot.index for boot in found] == [-2, -1, 0]
    assert all(earlier.last <= later.first for earlier, later in itertools.pairwise(found))


def test_rubbish_is_no_boot() -> None:
    assert parse_boots("No journal files were found.\n-1 short Sat\n") == []


# --- asking --------------------------------------------------------------------------------------


def test_what_is_asked_of_journalctl(bin: Path) -> None:
    program(bin, "journalctl", 'echo "$@ TZ=$TZ"')
    said = kernel_log.journal(("sparkd.service", "docker.service"), boot=-1, lines_max=7, timeout_s=5)
    assert said == (
        "--unit=sparkd.service --unit=docker.service --boot=-1 --lines=7 --output=short-iso --quiet --no-pager --all TZ=UTC\n"
    )
    assert kernel_log.kernel_log(-1, lines_max=7, timeout_s=5).startswith("-k --boot=-1 --lines=7 ")


def test_a_boot_that_is_not_kept_is_unknown_not_an_empty_log(bin: Path) -> None:
    program(
        bin,
        "journalctl",
        'echo "Data from the specified boot (-1) is not available: No such boot ID in journal" >&2; exit 1',
    )
    with pytest.raises(UnreachableError, match="nothing of the boot before this one") as error:
        kernel_log.kernel_log(-1, lines_max=10, timeout_s=5)
    assert "mkdir -p /var/log/journal" in error.value.hint
    with pytest.raises(UnreachableError):
        kernel_log.journal((), boot=-1, lines_max=10, timeout_s=5)


def test_a_user_who_may_not_read_is_told(bin: Path) -> None:
    program(
        bin, "journalctl", 'echo "Hint: You are currently not seeing messages from other users and the system." >&2'
    )
    with pytest.raises(SparkdError, match="cannot be read by this user") as error:
        kernel_log.journal((), lines_max=10, timeout_s=5)
    assert error.value.hint == "run it as root"


def test_a_journal_that_hangs_has_a_limit(bin: Path) -> None:
    program(bin, "journalctl", "sleep 60")
    with pytest.raises(SparkdError, match=r"did not end within 0\.3 s"):
        kernel_log.boots(0.3)


def test_without_a_journal_dmesg_is_asked_for_this_boot_only(bin: Path, tmp_path: Path) -> None:
    program(bin, "journalctl", "echo 'Failed to open the journal' >&2; exit 1")
    program(
        bin, "dmesg", 'echo "$@"; echo 2026-11-21T10:00:00,000001+00:00 one; echo 2026-11-21T10:00:01,000001+00:00 two'
    )
    asked = partial(kernel_log.kernel_log, lines_max=2, timeout_s=5, journals=(tmp_path / "none",))
    assert asked().splitlines() == [
        "2026-11-21T10:00:00,000001+00:00 one",
        "2026-11-21T10:00:01,000001+00:00 two",
    ]
    with pytest.raises(SparkdError, match="Failed to open the journal"):
        asked(-1)
    program(bin, "dmesg", "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1")
    with pytest.raises(SparkdError, match="Operation not permitted"):
        asked()


def test_a_journal_without_kernel_lines_is_an_answer(bin: Path, tmp_path: Path) -> None:
    """A node that is itself a container: the ring buffer is another machine's."""
    program(bin, "journalctl", "exit 0")
    program(bin, "dmesg", "echo Kernel panic of somebody else")
    (tmp_path / "journal/id").mkdir(parents=True)
    (tmp_path / "journal/id/system.journal").touch()
    assert kernel_log.kernel_log(lines_max=2, timeout_s=5, journals=(tmp_path / "journal",)) == ""


def test_long_lines_are_cut(bin: Path) -> None:
    program(bin, "journalctl", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end")
    first, last = kernel_log.journal((), lines_max=2, timeout_s=5).splitlines()
    assert (len(first), last) == (kernel_log.LINE_MAX_CHARS, "end")


# --- pstore --------------------------------------------------------------------------------------


def test_records_are_found_in_pstore_and_where_systemd_moves_them(tmp_path: Path) -> None:
    live, archive = tmp_path / "pstore", tmp_path / "archive/1763720000"
    live.mkdir()
    archive.mkdir(parents=True)
    (live / "dmesg-efi-1").write_text("Panic#1 Part1\n<0>[12.3] Kernel panic - not syncing: hung\n")
    (archive / "dmesg.txt").write_text("Oops#1 Part1\n")
    (live / "old").write_text("of a crash long ago")
    (archive / "old.txt").write_text("of the crash before that")
    os.utime(live / "old", (1000, 1000))
    os.utime(archive / "old.txt", (3000, 3000))
    found = pstore(live, tmp_path / "archive", since=2000, archived_since=4000)
    assert sorted(Path(record).name for record in found) == ["dmesg-efi-1", "dmesg.txt"]
    assert pstore(tmp_path / "none", tmp_path / "none") == {}


def test_a_large_record_is_cut(tmp_path: Path) -> None:
    (tmp_path / "dmesg-efi-1").write_bytes(b"\xff" * 300_000)
    assert len(pstore(tmp_path, tmp_path / "none")[str(tmp_path / "dmesg-efi-1")]) == kernel_log.PSTORE_MAX_BYTES
