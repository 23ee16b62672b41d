"""Baselines on a real disk: whole or not at all, five of them, and never a crash over what somebody put beside them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sparkd.doctor import baselines
from sparkd.host.paths import Paths
from sparkd.model.diagnosis import BaselineName, Boundary
from sparkd.model.errors import SparkdError, UnreachableError


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state")


def boundary(at: str = "2026-11-21T10:53:04Z", **groups: dict[str, str]) -> Boundary:
    return Boundary(node="spark1", at=at, groups=groups)


def test_what_is_written_is_read_again(paths: Paths) -> None:
    taken = boundary(kernel={"release": "6.17.0"})
    name = baselines.write(paths, taken, 18)
    assert name == BaselineName(epoch=18, at=taken.at) and name.name == "epoch-18-2026-11-21T10:53:04Z"
    assert baselines.newest(paths) == (name, taken)
    assert baselines.load(paths, name) == baselines.load(paths, name.name) == taken
    file = baselines.directory(paths) / f"{name.name}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_there_is_none_before_the_first(paths: Paths) -> None:
    assert baselines.all(paths) == [] and baselines.newest(paths) is None


def test_the_newest_five_are_kept(paths: Paths) -> None:
    written = [baselines.write(paths, boundary(f"2026-11-{day:02}T00:00:00Z"), day) for day in range(1, 9)]
    assert baselines.all(paths) == written[:-6:-1]


def test_one_from_a_wrong_clock_is_not_the_one_to_go(paths: Paths) -> None:
    for day in range(1, 7):
        baselines.write(paths, boundary(f"2026-11-{day:02}T00:00:00Z"), day)
    wrong = baselines.write(paths, boundary("1970-01-01T00:00:09Z"), 7)
    assert wrong in baselines.all(paths) and len(baselines.all(paths)) == baselines.KEPT


def test_a_corrupt_one_gives_way_to_the_one_before_it(paths: Paths) -> None:
    older = baselines.write(paths, boundary("2026-11-20T00:00:00Z"), 17)
    newer = baselines.write(paths, boundary("2026-11-21T00:00:00Z"), 18)
    (baselines.directory(paths) / f"{newer.name}.json").write_text('{"node": "spark1", "gro')
    complaints: list[str] = []
    found = baselines.newest(paths, complaints.append)
    assert found is not None and found[0] == older
    assert len(complaints) == 1 and newer.name in complaints[0]
    with pytest.raises(SparkdError, match="cannot be used as a baseline"):
        baselines.load(paths, newer)


def test_foreign_files_are_named_and_left_alone(paths: Paths) -> None:
    name = baselines.write(paths, boundary(), 18)
    folder = baselines.directory(paths)
    (folder / "notes.txt").write_text("mine")
    (folder / "epoch-x.json").write_text("{}")
    (folder / ".epoch-19-2026-11-21T10:53:05Z.json.new").write_text("{")  # the power went
    (folder / "epoch-19-2026-11-21T10:53:05Z.json").mkdir()
    complaints: list[str] = []
    found = baselines.newest(paths, complaints.append)
    assert found is not None and found[0] == name
    assert sorted(line.split("/")[-1].split()[0] for line in complaints if "not a baseline" in line) == [
        "epoch-x.json",
        "notes.txt",
    ]
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../../etc/shadow", "epoch-18-yesterday", "", "epoch-18-2026-11-21T10:53:04Z/../x"])
def test_a_name_leads_nowhere_else(paths: Paths, name: str) -> None:
    with pytest.raises(SparkdError, match="not the name of a baseline"):
        baselines.load(paths, name)


def test_one_that_is_not_there_is_told(paths: Paths) -> None:
    with pytest.raises(SparkdError, match="there is no baseline epoch-3-2026-11-21T10:53:04Z"):
        baselines.load(paths, "epoch-3-2026-11-21T10:53:04Z")


def test_one_that_is_too_large_is_refused(paths: Paths) -> None:
    name = baselines.write(paths, boundary(), 18)
    with (baselines.directory(paths) / f"{name.name}.json").open("ab") as file:
        file.truncate(baselines.FILE_MAX_BYTES + 10)
    with pytest.raises(SparkdError, match="larger than"):
        baselines.load(paths, name)


def test_what_cannot_be_listed_is_unknown_and_not_empty(paths: Paths) -> None:
    paths.state.mkdir(parents=True)
    baselines.directory(paths).write_text("a file in the directory's place")
    with pytest.raises(UnreachableError, match="cannot be read"):
        baselines.all(paths)
    with pytest.raises(OSError):
        baselines.write(paths, boundary(), 18)
