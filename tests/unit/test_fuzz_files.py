"""What lies on disk may be anything after a crash, a full disk or a hand that slipped: it costs its content, never the daemon."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkd.agent import launching
from sparkd.agent.journal import Journal
from sparkd.agent.store import Store
from sparkd.config.load import load, plan_for
from sparkd.doctor import baselines, last_boot
from sparkd.engine import api_key
from sparkd.engine.cleaning import launch_by_unit
from sparkd.engine.weights import manifest
from sparkd.host import files, samples
from sparkd.host.paths import Paths
from sparkd.model.diagnosis import Boundary
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Loss, Saved
from tests.unit.fuzzing import ROOT, broken, runs

BOOT = "0f0f0f0f-1111-2222-3333-444444444444"
LOST = bad("engine.rank-died", "VLLM::Worker_TP1 (pid 812) is gone", cure=Cure.RELAUNCH, evidence=("a", "b"))


def kept(folder: Path) -> Paths:
    """Every file as the daemon writes it."""
    paths = Paths(state=folder / "state", runtime=folder / "run", logs=folder / "log", key=folder / "key")
    store = Store(paths)
    store.save(Saved(boot_id=BOOT, epoch=18, launch_epoch=18, serving=True, loss=Loss(epoch=17, finding=LOST)))
    store.save_plan(plan_for(load(ROOT / "config" / "sparkd.yaml")))
    store.save_learned({"weights": 164.0, "graphs": 180.5})
    Journal(paths.events).add("agent.started", "sparkd runs", epoch=18, phase="idle")
    samples.Ring(paths.state / samples.FILE).append(samples.take(BOOT, "serving", 18))
    (paths.state / last_boot.FILE).write_text('{"seen_by": "b", "ending": "unknown", "says": "?"}')
    baselines.write(paths, Boundary(node="spark1", at="2026-11-21T10:53:04Z", groups={"a": {"b": "c"}}), 18)
    return paths


def read_all(paths: Paths) -> None:
    """As a daemon that starts and a doctor do. SparkdError is a sentence; nothing else may come."""
    store = Store(paths)
    saved, plan, learned = store.load(), store.load_plan(), store.load_learned()
    assert saved is None or 0 <= saved.epoch <= 10**15
    assert plan is None or plan.ranks is not None
    assert all(0 <= seconds < 1e6 for seconds in learned.values())
    for complaint in store.complaints:
        assert len(complaint) < 2000
    for record in Journal(paths.events).last(500):
        assert isinstance(record["says"], str)
        json.dumps(record, allow_nan=False).encode()
    readers: list[Callable[[], Any]] = [
        lambda: samples.read(paths.state / samples.FILE),
        lambda: last_boot.load(paths, "b"),
        lambda: baselines.newest(paths, lambda says: None),
        lambda: launch_by_unit(paths.launch_file),
        lambda: manifest(paths.state),
    ]
    for read in readers:
        try:
            read()
        except SparkdError as error:
            assert len(str(error)) < 2000


def names(paths: Paths) -> list[Path]:
    return sorted(path for path in paths.state.rglob("*") if path.is_file())


def test_broken_files_cost_their_content(tmp_path: Path) -> None:
    whole = {path: path.read_bytes() for path in names(kept(tmp_path))}
    assert len(whole) == 7
    for chance in runs(150):
        paths = Paths(state=tmp_path / "state", runtime=tmp_path / "run", logs=tmp_path / "log")
        for path in chance.sample(sorted(whole), chance.randrange(1, 4)):
            path.write_bytes(broken(whole[path], chance))
        read_all(paths)
        for path in tmp_path.rglob("*.corrupt"):
            path.unlink()
        for path, content in whole.items():
            path.write_bytes(content)


def test_a_state_file_cut_at_any_byte(tmp_path: Path) -> None:
    paths = kept(tmp_path)
    content = paths.saved.read_bytes()
    for cut in range(len(content)):
        paths.saved.write_bytes(content[:cut])
        assert Store(paths).load() is None
    paths.saved.write_bytes(content)
    saved = Store(paths).load()
    assert saved is not None and saved.epoch == 18


@pytest.mark.parametrize(
    "text",
    [
        '{"epoch": -1}',
        '{"epoch": 1%s}' % ("0" * 30),
        '{"epoch": 1e400}',
        '{"epoch": "18"x',
        '{"epoch": NaN}',
        "[" * 100_000,
        '{"loss": ' * 5000,
        '{"epoch": %s}' % ("9" * 5000),
        "null",
        "[]",
        '"x"',
        '{"launch_epoch": -5}',
        '{"profile": "\\ud800"}',
        '{"loss": {"epoch": 99999999999999999999, "finding": {}}}',
    ],
)
def test_a_state_from_nowhere_is_set_aside(text: str, tmp_path: Path) -> None:
    paths = kept(tmp_path)
    paths.saved.write_text(text)
    store = Store(paths)
    assert store.load() is None and "set aside" in store.complaints[0]
    paths.learned.write_text(text)
    assert store.load_learned() == {}
    good = '{"at": "", "id": "a", "says": "ok", "epoch": 1, "phase": "idle"}'
    paths.events.write_text("\n".join([text, '{"says": 1, "id": 2}', good.replace("1", '{"a": 1}'), good, ""]))
    assert [record["says"] for record in Journal(paths.events).last(9)] == ["ok"]


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "dangling", "loop", "unreadable", "huge"])
def test_something_else_in_the_place_of_each_file(kind: str, tmp_path: Path) -> None:
    """The FIFO is the one that waits: for an end that nobody holds, in the daemon's only loop."""
    paths = kept(tmp_path)
    for path in [*names(paths), paths.launch_file]:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        match kind:
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "dangling":
                path.symlink_to(tmp_path / "nowhere")
            case "loop":
                path.symlink_to(path)
            case "unreadable":
                path.write_bytes(b"")
                path.chmod(0)
            case "huge":
                with path.open("wb") as file:
                    file.truncate(1 << 30)
    read_all(paths)
    journal = Journal(paths.events)
    journal.add("agent.started", "still alive", epoch=1, phase="idle")
    assert journal.last(1)[0]["says"] == "still alive"


def test_an_event_of_bytes_that_are_no_text_is_written(tmp_path: Path) -> None:
    """A process may call itself what it likes, and its title comes as Python keeps such bytes: no JSON takes them."""
    journal = Journal(tmp_path / "events.jsonl")
    journal.add("engine.x", os.fsdecode(b"killed \xff\xfe \x1b[2Jby sk-abcdefghijklmnop"), epoch=1, phase="idle")
    assert Journal(tmp_path / "events.jsonl").last(1)[0]["says"] == "killed \\xff\\xfe \\x1b[2Jby [redacted]"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"a b", "one word"),
        (b"a\nb", "one word"),
        (b"\xff", "one word"),
        (b"a" * 9999, "larger"),
        ("schl\u00fcssel".encode(), "one word"),
        (b"a\0b", "one word"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SparkdError, match=told):
        api_key.read(path)
    path.write_bytes(b" S3cr3tValue99\n")
    assert api_key.read(path) == "S3cr3tValue99"


def test_what_is_read_in_one_piece_is_a_file_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert files.whole(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger"):
        files.whole(path, 4)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is not a file"):
        files.whole(tmp_path / "fifo")
    assert files.text(tmp_path / "fifo") == ""


@pytest.mark.parametrize(
    "value", ["a b", "a'b", 'a"b', "$x", "%n", "a\nb", "`id`", "a\\b", "", "-a", "#a", "é", "a;b", "~"]
)
def test_the_engine_s_unit_is_told_nothing_that_would_have_to_be_quoted(value: str) -> None:
    """systemd, bash and Python's shlex read the file by three sets of rules."""
    with pytest.raises(SparkdError, match="cannot be told"):
        launching.launch_text({"SPARKD_LOG": value})
    assert (
        launching.launch_text({"SPARKD_SCRIPT": "/workspace/sparkd-rank0.sh"})
        == "SPARKD_SCRIPT=/workspace/sparkd-rank0.sh\n"
    )
