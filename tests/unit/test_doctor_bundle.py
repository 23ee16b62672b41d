"""The support bundle: everything that is needed is in it, and no secret; a file that cannot be had costs itself only."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkd.doctor import bundle
from sparkd.doctor.facts import Facts
from sparkd.doctor.signatures import Text
from sparkd.engine.container import Docker
from sparkd.host.paths import Paths
from sparkd.model.diagnosis import Diagnosis, Examination, Source
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Verdict

KEY = "p1q2-r3s4-t5u6"  # looks like nothing: only its very text can be known
DIAGNOSES = (Diagnosis(node="spark1", at="2026-11-20T22:14:03Z"), Diagnosis(node="spark2", at="2026-11-20T22:14:03Z"))


def read(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }


def test_a_bundle_holds_what_happened_on_both_nodes_and_no_secret(tmp_path: Path) -> None:
    paths = Paths(state=tmp_path / "state", logs=tmp_path / "logs", key=tmp_path / "cluster.key")
    paths.state.mkdir()
    paths.key.write_text(f"{KEY}\n")
    paths.events.write_text('{"id": "engine.lost", "says": "api_key=sk-abcdefgh12345678 was used"}\n')
    facts = Facts(
        Docker("unix:///nonexistent"), paths=paths, status={"phase": "blocked", "token": "hf_abcdefghijklmnop"}
    )
    whole = Examination(version="1", at="2026-11-20T22:14:03Z", node="spark1", verdict=Verdict.BAD, nodes=DIAGNOSES)
    texts = [
        Text(
            Source.VLLM_LOG,
            f"ValueError: no\nserving with --api-key {KEY}\n",
            where="/var/log/sparkd/engine/../x y.log",
        )
    ]
    target = tmp_path / "report.tar.gz"

    packed = bundle.pack(
        target, bundle.contents(facts, whole, ["spark1: engine.lost: it ended"], texts), secrets=bundle.keys(facts)
    )

    files = read(target)
    assert (target.stat().st_mode & 0o777) == 0o600
    assert {
        "doctor.txt",
        "doctor.json",
        "drift-spark1.json",
        "drift-spark2.json",
        "status.json",
        "events.jsonl",
    } <= files.keys()
    assert "ValueError: no" in files["logs/00-x-y.log.txt"]
    assert "MemTotal" in files["host.txt"]
    everything = "\n".join(files.values())
    for secret in (KEY, "sk-abcdefgh12345678", "hf_abcdefghijklmnop"):
        assert secret not in everything
    assert everything.count("[redacted]") >= 3
    assert any(line.startswith("container.json") for line in packed.missing), (
        "there is no Docker here: said, not hidden"
    )
    assert "container.json" in files["missing.txt"]
    assert all(not name.startswith("/") and ".." not in name.split("/") for name in files)


def test_an_existing_file_is_never_overwritten_and_half_a_bundle_never_left(tmp_path: Path) -> None:
    mine = tmp_path / "mine.tar.gz"
    mine.write_text("precious")
    with pytest.raises(SparkdError, match="File exists"):
        bundle.pack(mine, [])
    assert mine.read_text() == "precious"
    link = tmp_path / "link.tar.gz"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SparkdError):
        bundle.pack(link, [])
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_is_cut_at_its_beginning_and_the_whole_is_bounded(tmp_path: Path) -> None:
    def long(name: str) -> tuple[str, Callable[[], str]]:
        return name, lambda: "begin " + "." * 500 + " end"

    packed = bundle.pack(tmp_path / "b.tar.gz", [long("a"), long("b"), long("c")], file_max_bytes=100, max_bytes=250)
    files = read(tmp_path / "b.tar.gz")
    assert files["a"].endswith(" end") and len(files["a"]) == 100
    assert [name for name, _ in packed.files] == ["a", "b"]
    assert packed.missing == ("c: the bundle is full",)


def test_a_secret_at_the_cut_is_not_packed_in_part(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(f"first {KEY}\n" + "second line\n")
    cut_into_the_key = len("second line\n") + 6
    assert bundle.tail(log, cut_into_the_key) == "second line\n"
    assert bundle.tail(log, 1000).startswith("first")


def test_a_private_key_across_the_cut_is_not_packed_in_part(tmp_path: Path) -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBg\n" * 10 + "-----END PRIVATE KEY-----\n"
    log = "x\n" * 1000 + key + "y\n" * 40
    bundle.pack(tmp_path / "b.tar.gz", [("log", lambda: log)], file_max_bytes=200)
    told = read(tmp_path / "b.tar.gz")["log"]
    assert "MIIEvQ" not in told and told.endswith("y\n")


def test_an_odd_file_costs_itself_and_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def odd() -> str:
        raise KeyError("State")

    def interrupted() -> str:
        raise KeyboardInterrupt

    packed = bundle.pack(tmp_path / "odd.tar.gz", [("a", odd), ("b", lambda: "text")])
    assert packed.missing == ("a: 'State'",) and "b" in read(tmp_path / "odd.tar.gz")
    with pytest.raises(KeyboardInterrupt):
        bundle.pack(tmp_path / "half.tar.gz", [("a", lambda: "text"), ("b", interrupted)])
    assert not (tmp_path / "half.tar.gz").exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(SparkdError, match="No such file") as told:
        bundle.pack(tmp_path / "no" / "such" / "directory.tar.gz", [])
    assert told.value.hint
