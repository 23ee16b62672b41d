"""What must survive a restart: written atomically, read back equal, set aside when it is not whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparkd.agent.journal import Journal
from sparkd.agent.launching import keep_newest
from sparkd.agent.store import Store
from sparkd.host.files import write_atomically
from sparkd.host.paths import Paths
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Gate, Loss, Saved


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", runtime=tmp_path / "run", logs=tmp_path / "log")


def test_what_was_saved_is_loaded(paths: Paths) -> None:
    loss = Loss(epoch=17, finding=bad("engine.hung", "it hung", cure=Cure.RELAUNCH))
    saved = Saved(boot_id="b", epoch=18, gate=Gate.ALL, launch_epoch=18, serving=True, loss=loss)
    Store(paths).save(saved)
    assert Store(paths).load() == saved


def test_nothing_saved_is_no_complaint(paths: Paths) -> None:
    store = Store(paths)
    assert store.load() is None
    assert store.complaints == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"epoch": "many"}', b"\xff\xfe", b"[]"])
def test_a_corrupt_file_is_set_aside_and_told(paths: Paths, content: bytes) -> None:
    paths.state.mkdir(parents=True)
    paths.saved.write_bytes(content)
    store = Store(paths)
    assert store.load() is None
    assert "state.json.corrupt" in store.complaints[0]
    assert (paths.state / "state.json.corrupt").read_bytes() == content
    store.save(Saved(epoch=3))
    assert Store(paths).load() == Saved(epoch=3)


def test_fields_of_a_newer_version_are_ignored(paths: Paths) -> None:
    paths.state.mkdir(parents=True)
    paths.saved.write_text('{"epoch": 4, "of_tomorrow": 1}')
    loaded = Store(paths).load()
    assert loaded is not None
    assert loaded.epoch == 4


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """The directory in the place of the new file is a real failure, as a full disk would be."""
    target = tmp_path / "state.json"
    write_atomically(target, "old")
    (tmp_path / ".state.json.new").mkdir()
    with pytest.raises(OSError):
        write_atomically(target, "new")
    assert target.read_text() == "old"


def test_learned_durations_survive_and_rubbish_is_nothing(paths: Paths) -> None:
    Store(paths).save_learned({"weights": 164.0})
    assert Store(paths).load_learned() == {"weights": 164.0}
    paths.learned.write_text('{"weights": "long"}')
    assert Store(paths).load_learned() == {}


def test_events_are_kept_on_disk_and_half_a_line_is_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    journal.add("phase", "idle -> preflight", epoch=1, phase="preflight")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"at": "2026')
    again = Journal(tmp_path / "events.jsonl")
    assert [record["says"] for record in again.last(10)] == ["idle -> preflight"]
    assert again.last(0) == []


def test_only_the_newest_engine_logs_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        file = tmp_path / f"aa-{number}.log"
        file.write_text("x")
        os.utime(file, (number, number))
    keep_newest(tmp_path, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["aa-3.log", "aa-4.log"]


def test_what_was_taken_out_of_a_large_log_goes_with_it(tmp_path: Path) -> None:
    for number in range(4):
        for name in (f"aa-{number}.log", f"aa-{number}.log.1"):
            (tmp_path / name).write_text("x")
            os.utime(tmp_path / name, (number, number))
    keep_newest(tmp_path, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["aa-2.log", "aa-2.log.1", "aa-3.log", "aa-3.log.1"]
