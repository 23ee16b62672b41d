"""What must survive a restart: written atomically, read back equal, set aside when it is not whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
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


def test_what_is_taken_away_under_the_daemon_is_written_again(paths: Paths) -> None:
    store = Store(paths)
    assert store.settle() == []
    store.save(Saved(epoch=3))
    store.save(Saved(epoch=4))
    assert store.settle() == []
    shutil.rmtree(paths.state)
    assert store.settle() == ["state.json"]
    assert Store(paths).load() == Saved(epoch=4)
    later = Store(paths)
    later.load()
    paths.saved.unlink()
    assert later.settle() == ["state.json"], "what was only loaded is kept as well"


def test_a_directory_that_cannot_be_made_again_leaves_the_state_in_run(paths: Paths) -> None:
    store = Store(paths)
    store.save(Saved(epoch=4))
    shutil.rmtree(paths.state)
    paths.state.write_text("no directory")
    with pytest.raises(OSError):
        store.settle()
    paths.state.unlink()
    later = Store(paths)
    assert later.load() == Saved(epoch=4)
    assert later.settle() == [] and paths.saved.is_file() and not (paths.runtime / "state.json").exists()


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


def logs(directory: Path, *names: str) -> None:
    """Written in this order, a second apart."""
    for number, name in enumerate(names):
        file = directory / f"{name}.log"
        file.write_text("x")
        os.utime(file, (number, number))


def left(directory: Path) -> list[str]:
    return sorted(file.stem for file in directory.iterdir())


def test_only_the_newest_engine_logs_are_kept(tmp_path: Path) -> None:
    logs(tmp_path, *(f"aa-{number}" for number in range(5)))
    keep_newest(tmp_path, 2, tmp_path / "aa-4.log")
    assert left(tmp_path) == ["aa-3", "aa-4"]


def test_what_was_taken_out_of_a_large_log_goes_with_it(tmp_path: Path) -> None:
    logs(tmp_path, *(f"aa-{number}" for number in range(4)))
    for number in range(4):
        (tmp_path / f"aa-{number}.log.1").write_text("x")
    keep_newest(tmp_path, 2, tmp_path / "aa-3.log")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["aa-2.log", "aa-2.log.1", "aa-3.log", "aa-3.log.1"]


def test_a_clock_that_was_set_back_costs_no_newer_log(tmp_path: Path) -> None:
    logs(tmp_path, "bb-10", "bb-9", "aa-7", "aa-8", "bb-8")  # times are no order any more
    keep_newest(tmp_path, 3, tmp_path / "bb-10.log")
    assert left(tmp_path) == ["bb-10", "bb-8", "bb-9"]


def test_the_log_of_a_node_that_counts_anew_is_kept(tmp_path: Path) -> None:
    logs(tmp_path, "aa-40", "aa-41", "bb-42", "bb-1")
    keep_newest(tmp_path, 2, tmp_path / "bb-1.log")
    assert left(tmp_path) == ["bb-1", "bb-42"]
    keep_newest(tmp_path, 1, tmp_path / "bb-1.log")
    assert left(tmp_path) == ["bb-1"]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of 64 KiB that is full."""
    directory = tmp_path / "full"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=True)
    try:
        (directory / "events.jsonl").write_text("")
        with contextlib.suppress(OSError), (directory / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_keeps_the_state_in_run_and_then_again_on_disk(full: Path, tmp_path: Path) -> None:
    paths = Paths(state=full, runtime=tmp_path / "run", logs=tmp_path / "log")
    with pytest.raises(OSError, match="No space"):
        Store(paths).save(Saved(epoch=7, launch_epoch=7))
    loaded = Store(paths).load()
    assert loaded is not None and loaded.launch_epoch == 7
    (full / "filler").unlink()
    Store(paths).save(Saved(epoch=8, launch_epoch=8))
    assert not (tmp_path / "run/state.json").exists()
    assert (loaded := Store(paths).load()) is not None and loaded.epoch == 8


def test_a_full_disk_cuts_no_event_in_half(full: Path) -> None:
    journal = Journal(full / "events.jsonl")
    for number in range(100):
        journal.add("phase", f"{number} " + 2000 * "x", epoch=number, phase="loading")
    whole = (full / "events.jsonl").read_text()
    assert whole == "" or whole.endswith("\n")
    (full / "filler").unlink()
    journal.add("phase", "there is room", epoch=101, phase="serving")
    assert [record["says"] for record in Journal(full / "events.jsonl").last(1)] == ["there is room"]
    assert len(journal.last(200)) == 101  # in memory nothing was lost


def test_a_directory_in_the_place_of_the_events_is_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    (file / "of somebody").mkdir(parents=True)
    journal = Journal(file)
    for number in range(2):
        journal.add("phase", f"event {number}", epoch=number, phase="idle")
    assert [record["says"] for record in Journal(file).last(10)] == ["event 0", "event 1"]
    assert (tmp_path / "events.jsonl.corrupt/of somebody").is_dir()


RUBBISH = [os.urandom(5000), b"", b"{}\n", b"[" * 100_000, b'{"says": 1, "id": [], "at": 0}\n', b"\xff" * 10, b"null\n"]


@pytest.mark.parametrize("content", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_among_the_events_costs_only_itself(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "events.jsonl"
    Journal(file).add("phase", "before", epoch=1, phase="idle")
    with file.open("ab") as opened:
        opened.write(content + b"\n")
    Journal(file).add("phase", "after", epoch=1, phase="idle")
    assert [record["says"] for record in Journal(file).last(10)] == ["before", "after"]


def test_events_of_any_size_are_read_from_their_end(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with file.open("wb") as opened:
        opened.truncate(3 << 30)  # sparse: it would not fit into the daemon's memory
    journal = Journal(file)
    journal.add("phase", "now", epoch=1, phase="idle")
    assert [record["says"] for record in Journal(file).last(10)] == ["now"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"gate": "ajar"}',
        b'{"epoch": -1}',
        b'{"epoch": 1e400}',
        b'{"restarts_used": -3}',
        b"[" * 100_000,
        os.urandom(4096),
    ],
)
def test_a_state_that_this_version_does_not_understand_is_set_aside(paths: Paths, content: bytes) -> None:
    paths.state.mkdir(parents=True)
    paths.saved.write_bytes(content)
    store = Store(paths)
    assert store.load() is None
    assert len(store.complaints) == 1 and "\n" not in store.complaints[0]


def test_a_huge_state_is_not_read(paths: Paths) -> None:
    paths.state.mkdir(parents=True)
    with paths.saved.open("wb") as opened:
        opened.truncate(3 << 30)
    store = Store(paths)
    assert store.load() is None
    assert "is larger than" in store.complaints[0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"load": 1e999}', '{"load": -3}', '{"load": NaN}', "[]", "7"])
def test_learned_durations_that_are_none_are_nothing(paths: Paths, text: str) -> None:
    paths.state.mkdir(parents=True)
    paths.learned.write_text(text)
    assert Store(paths).load_learned() == {}
