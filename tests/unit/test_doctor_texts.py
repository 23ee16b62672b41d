"""Which texts are looked in, what of them is of the present, and what is told when they cannot be read."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sparkd.doctor import texts
from sparkd.doctor.facts import Facts
from sparkd.doctor.timeline import BEFORE_S, Launch, Present, present, split
from sparkd.engine.container import Docker
from sparkd.host.paths import Paths

NOW = 2_000_000_000.0
BOOT, BOOTED = "ab12cd34", NOW - 86400


def at(seconds_ago: float) -> str:
    return datetime.fromtimestamp(NOW - seconds_ago, UTC).isoformat()


def event(ago: float, says: str, *, epoch: int = 17, id: str = "phase", alarm: bool = False) -> dict[str, Any]:
    return {"at": at(ago), "id": id, "says": says, "epoch": epoch, "phase": "", "alarm": alarm}


LAUNCHED = [event(3600, "armed -> launching (epoch 17)"), event(3580, "launching -> loading (epoch 17)")]
SERVED = [*LAUNCHED, event(3000, "proving -> serving (epoch 17)")]
LOST = event(100, "epoch 17 lost on spark1: killed", id="engine.killed", alarm=True)
LAUNCH = Launch(f"{BOOT}-17", NOW - 90)


def where(launches: list[Launch], events: list[dict[str, Any]], status: dict[str, Any] | None = None) -> Present:
    return present(launches, events, status, boot=BOOT, booted_at=BOOTED, now=NOW)


def test_while_it_serves_all_before_the_last_proof_is_history() -> None:
    status = {"serving": True, "launch_id": LAUNCH.id, "proof_age_s": 12.0}
    here = where([LAUNCH], SERVED, status)
    assert here == Present(LAUNCH.id, NOW - 12, proven=True, earlier_boot=False, served=True)


def test_a_launch_that_never_served_is_explained_from_before_it_began() -> None:
    lost = event(3400, "epoch 17 lost on spark1: out of memory", id="engine.start-out-of-memory", alarm=True)
    here = where([LAUNCH, Launch(f"{BOOT}-16", NOW - 9000)], [*LAUNCHED, lost])
    assert (here.launch, here.since, here.earlier_boot) == (LAUNCH.id, NOW - 3600 - BEFORE_S, True)


def test_a_launch_that_served_is_explained_from_before_its_loss() -> None:
    here = where([LAUNCH], [*SERVED, LOST])
    assert (here.launch, here.since, here.earlier_boot) == (LAUNCH.id, NOW - 100 - BEFORE_S, False)
    assert here.served


def test_what_came_before_it_served_is_history_while_it_is_proven_anew() -> None:
    """After a restart of the daemon the adopted engine is asked once more; the loss of the launch before it is no news."""
    before = event(3700, "epoch 16 lost on spark1: killed", epoch=16, id="engine.killed", alarm=True)
    here = where([LAUNCH], [before, *SERVED], {"serving": False, "launch_id": LAUNCH.id, "since_s": 0.1})
    assert (here.launch, here.since) == (LAUNCH.id, NOW - 3000)
    loading = where([LAUNCH], [before, *LAUNCHED], {"serving": False, "launch_id": LAUNCH.id, "since_s": 0.1})
    assert loading.since == NOW - 3600 - BEFORE_S and loading.journal_since == NOW - 3600


def test_what_an_operator_ended_explains_nothing() -> None:
    stop = event(200, "stop: asked by the operator", id="operator.stop")
    assert where([LAUNCH], [*SERVED, stop]).launch is None
    assert where([LAUNCH], [*SERVED, event(250, "lost", id="engine.hung", alarm=True), stop]).launch == LAUNCH.id


def test_a_launch_that_loads_is_of_the_present() -> None:
    status = {"serving": False, "launch_id": LAUNCH.id, "since_s": 10.0}
    assert where([LAUNCH], LAUNCHED, status).launch == LAUNCH.id


def test_without_events_the_newest_launch_of_this_boot_speaks() -> None:
    assert where([LAUNCH], []).launch == LAUNCH.id
    assert where([Launch("ffffffff-17", NOW - 90000)], []).launch is None


def test_a_crash_loop_outlasts_a_reboot() -> None:
    before = Launch("ffffffff-17", NOW - 90000)
    lost = event(90010, "epoch 17 lost on spark1: xid", id="engine.cuda-error", alarm=True)
    assert where([before], [event(90100, "armed -> launching (epoch 17)"), lost]).launch == before.id


def test_before_the_first_launch_the_present_is_what_the_node_waits_in() -> None:
    assert where([], [], {"serving": False, "since_s": 30.0}).since == NOW - 30 - BEFORE_S
    assert where([], []).since == 0.0


def test_events_with_strange_times_break_nothing() -> None:
    strange = [{"at": "yesterday", "id": "phase", "says": "armed -> launching", "epoch": 17}, {"id": 3}, {}]
    assert where([LAUNCH], strange).launch == LAUNCH.id


# --- host logs in time ---------------------------------------------------------------------------

KERNEL = """2033-05-18T03:00:00+00:00 spark1 kernel: old
2033-05-18T03:20:00+00:00 spark1 kernel: older line
  its continuation
2033-05-18T03:32:00+00:00 spark1 kernel: new
continued
2033-05-18T03:33:00+0000 spark1 kernel: newest
"""


def test_a_host_log_is_split_where_the_present_begins() -> None:
    before, now = split(KERNEL, NOW - 120)
    assert before.endswith("its continuation\n") and now.startswith("2033-05-18T03:32:00") and "newest" in now
    assert before + now == KERNEL
    assert split(KERNEL, 0.0) == ("", KERNEL)
    assert split(KERNEL, NOW * 2) == (KERNEL, "")


def test_a_log_without_times_is_of_the_present() -> None:
    assert split("no stamp\nat all", NOW) == ("", "no stamp\nat all")
    assert split("", NOW) == ("", "")


# --- engine logs -----------------------------------------------------------------------------------


def test_a_short_log_is_read_whole(tmp_path: Path) -> None:
    log = tmp_path / "a-1.log"
    log.write_text("one\ntwo\n")
    assert texts.read_ends(log, 100, 100) == ("one\ntwo\n", 0, 0)


def test_of_a_long_log_both_ends_are_read_and_its_lines_keep_their_numbers(tmp_path: Path) -> None:
    lines = [f"line {number} {'x' * (number % 7)}" for number in range(1, 20001)]
    log = tmp_path / "a-1.log"
    log.write_text("\n".join(lines) + "\n")
    text, head, skipped = texts.read_ends(log, 1000, 5000)
    got = text.splitlines()
    assert got[0] == lines[0] and got[-1] == lines[-1] and len(text) < 6100
    for number, line in enumerate(got, 1):
        assert line == lines[number + (skipped if number > head else 0) - 1]


def test_a_start_that_completed_in_the_middle_is_still_seen(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(20000)]
    lines[10000] = "INFO:     Application startup complete."
    log = tmp_path / "a-1.log"
    log.write_text("\n".join(lines) + "\n")
    text, head, skipped = texts.read_ends(log, 1000, 5000)
    got = text.splitlines()
    assert got[head - 1].endswith("startup complete.")
    assert lines[len(got) + skipped - 1] == got[-1]


def test_routine_lines_are_thinned_and_keep_their_places() -> None:
    stats = "INFO [loggers.py:1] Engine 000: Avg prompt throughput: 1.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs"
    busy = stats.replace("Waiting: 0", "Waiting: 9")
    log = "\n".join(["start", *[stats] * 50, "ERROR: broken", *[stats] * 3, busy, "end"])
    thin = texts.without_routine(log)
    assert [line for line in thin.split("\n") if line] == [
        "start",
        stats,
        stats,
        "ERROR: broken",
        stats,
        stats,
        busy,
        "end",
    ]
    assert thin.split("\n").index("ERROR: broken") == log.split("\n").index("ERROR: broken")


# --- a node ------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Facts:
    paths = Paths(state=tmp_path / "state", runtime=tmp_path / "run", logs=tmp_path / "log")
    for directory in (paths.state, paths.runtime, paths.engine_logs):
        directory.mkdir(parents=True)
    return Facts(docker=Docker("unix:///nonexistent.sock", timeout_s=0.2), paths=paths)


def test_every_kept_launch_is_read_and_the_newest_is_of_the_present(node: Facts) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    for epoch, age in ((16, 500), (17, 100)):
        log = node.paths.engine_log(f"{boot}-{epoch}")
        log.write_text(f"epoch {epoch}\n")
        os.utime(log, (NOW - age, NOW - age))
    (node.paths.engine_logs / "notes.txt").write_text("no log")
    found, _ = texts.texts(node)
    logs = [text for text in found if text.where.endswith(".log")]
    assert [(Path(text.where).stem.rpartition("-")[2], text.text, text.current) for text in logs] == [
        ("17", "epoch 17\n", True),
        ("16", "epoch 16\n", False),
    ]


def test_a_log_that_cannot_be_read_is_told(node: Facts) -> None:
    node.paths.engine_logs.rmdir()
    node.paths.engine_logs.write_text("a file where a directory should be")
    _, unseen = texts.texts(node)
    assert any(str(node.paths.engine_logs) in why for why in unseen)


def test_events_are_read_from_their_end_and_broken_ones_left_out(node: Facts) -> None:
    whole = "".join(json.dumps(event(1, "x" * 1000)) + "\n" for _ in range(400))
    node.paths.events.write_text(whole + "[1]\n" + '{"at": "2026')
    found = texts.events(node.paths.events)
    assert 200 < len(found) < 400 and all(isinstance(each, dict) for each in found)
    assert texts.events(node.paths.events / "none") == []


def test_a_journal_that_hangs_costs_its_limit_and_is_told(
    node: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "journalctl"
    fake.write_text("#!/bin/sh\nsleep 30\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gathered = texts.gather(node, limit_s=0.5)
    assert any("the journal" in why and "0.5 s" in why for why in gathered.unseen)


def test_the_journal_of_the_units_is_asked_for(node: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "journalctl"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in *--unit*) echo "2033-05-18T03:33:10+00:00 h u: said";; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found, _ = texts.texts(node)
    assert [text.text.strip() for text in found if text.where == "journal"] == ["2033-05-18T03:33:10+00:00 h u: said"]
    asked = (tmp_path / "asked").read_text()
    assert all(unit in asked for unit in texts.OUR_UNITS) and "-k" in asked


def test_the_doctors_own_question_without_a_key_is_no_refused_client() -> None:
    ours = 'INFO:     127.0.0.1:40112 - "GET /v1/models HTTP/1.1" 401 Unauthorized'
    theirs = 'INFO:     192.168.1.9:40112 - "GET /v1/models HTTP/1.1" 401 Unauthorized'
    assert texts.without_routine(f"a\n{ours}\n{theirs}\n") == f"a\n\n{theirs}\n"
