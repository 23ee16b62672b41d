"""Small files: what cannot be read is empty, a tail has whole lines, what is written is whole or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkd.host import files


def test_what_cannot_be_read_is_empty_and_no_number(tmp_path: Path) -> None:
    (tmp_path / "carrier").write_text("1\n")
    (tmp_path / "speed").write_text("-1\n")
    (tmp_path / "state").write_text("up\n")
    assert files.text(tmp_path / "state") == "up"
    assert files.number(tmp_path / "carrier") == 1 and files.number(tmp_path / "speed") == -1
    for path in (tmp_path / "state", tmp_path, tmp_path / "missing"):
        assert files.number(path) is None
    assert files.text(tmp_path) == files.text(tmp_path / "missing") == ""


def test_a_long_file_is_read_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 100)
    assert files.text(tmp_path / "long", 10) == "x" * 10


@pytest.mark.parametrize(
    ("max_bytes", "kept"), [(100, "one\ntwo\nthree\n"), (10, "three\n"), (6, ""), (0, "")], ids=str
)
def test_a_tail_has_whole_lines(tmp_path: Path, max_bytes: int, kept: str) -> None:
    (tmp_path / "log").write_text("one\ntwo\nthree\n")
    assert files.tail(tmp_path / "log", max_bytes) == kept


def test_nothing_is_written_through_a_link_that_lies_in_the_way(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / ".state.json.new").symlink_to(elsewhere)
    files.write_atomically(tmp_path / "state.json", "{}")
    assert not elsewhere.exists() and not (tmp_path / "state.json").is_symlink()
    assert (tmp_path / "state.json").read_text() == "{}"
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
