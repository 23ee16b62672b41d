"""The cluster's keys: the file, its rotation, and what is known of the other nodes'."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sparkd.model.errors import ConfigError
from sparkd.peer.keys import load_keys, new_key


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "cluster.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_new_key_can_be_loaded(tmp_path: Path) -> None:
    key = new_key()
    assert load_keys(key_file(tmp_path, key + "\n")) == (bytes.fromhex(key),)
    assert key != new_key()


def test_two_keys_keep_their_order_and_comments_are_left_out(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"# new since Monday\n{'ab' * 16}\n\n{'CD' * 32}\n")
    assert load_keys(path) == (b"\xab" * 16, b"\xcd" * 32)


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("", "no key", ""),
        ("# nothing\n", "no key", ""),
        ("ab" * 15, "too short", ":1"),
        ("\n" + "xy" * 16, "hexadecimal", ":2"),
        ("a" * 33, "even number", ":1"),
        (("ab" * 16 + "\n") * 3, "3 keys", ""),
        ("é" * 40, "hexadecimal", ""),
    ],
)
def test_a_bad_key_file_says_where_and_shows_nothing_of_it(tmp_path: Path, text: str, says: str, line: str) -> None:
    path = key_file(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        load_keys(path)
    assert error.value.where == f"{path}{line}"
    assert "sparkd init" in error.value.hint
    assert "abab" not in str(error.value) + error.value.hint


@pytest.mark.parametrize("bit", [stat.S_IRGRP, stat.S_IROTH, stat.S_IWOTH])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, bit: int) -> None:
    with pytest.raises(ConfigError, match="others") as error:
        load_keys(key_file(tmp_path, new_key(), 0o600 | bit))
    assert "chmod 0600" in error.value.hint


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as error:
        load_keys(tmp_path / "none")
    assert "sparkd init" in error.value.hint
    with pytest.raises(ConfigError):
        load_keys(tmp_path)
