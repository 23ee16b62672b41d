"""The cluster's keys: the file, its rotation, and what is known of the other nodes'."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sparkd.model.errors import ConfigError, SparkdError
from sparkd.peer.keys import Keyring, fingerprint, load_keys, make, new_key, write


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


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_a_made_key_is_roots_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "cluster.key"
    old = os.umask(umask)
    try:
        key = make(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_keys(path) == (key,) and len(key) == 32
    assert [one.name for one in tmp_path.iterdir()] == ["cluster.key"], "nothing is left beside it"


@pytest.mark.parametrize("there", ["", "garbage", "link", "directory"])
def test_whatever_is_there_is_never_replaced(tmp_path: Path, there: str) -> None:
    path, elsewhere = tmp_path / "cluster.key", tmp_path / "elsewhere"
    if there == "link":
        path.symlink_to(elsewhere)
    elif there == "directory":
        path.mkdir()
    else:
        path.write_text(there)
    with pytest.raises(SparkdError, match="there is a cluster key already") as error:
        make(path)
    assert "sparkd key rotate" in error.value.hint
    assert not elsewhere.exists()
    assert there in ("link", "directory") or path.read_text() == there
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_a_directory_is_made_where_there_is_none(tmp_path: Path) -> None:
    make(tmp_path / "etc/sparkd/cluster.key")
    assert stat.S_IMODE((tmp_path / "etc/sparkd").stat().st_mode) == 0o755


def test_two_keys_are_written_and_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    old, new = make(path), bytes.fromhex(new_key())
    write(path, (old, new))
    assert load_keys(path) == (old, new)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write(path, (new,))
    assert load_keys(path) == (new,)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_a_key_that_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, new_key())
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        load_keys(path)


def test_a_fingerprint_tells_keys_apart_and_nothing_of_them() -> None:
    keys = [bytes.fromhex(new_key()) for _ in range(50)]
    prints = {fingerprint(key) for key in keys}
    assert len(prints) == 50
    assert not any(one in key.hex() for one in prints for key in keys)


def test_what_a_peer_last_signed_with_is_remembered() -> None:
    old, new = b"o" * 32, b"n" * 32
    ring = Keyring((old, new))
    assert ring.told(["spark2"])["peers"] == {"spark2": None}
    ring.shown("spark2", (old,))
    ring.shown("spark2", (new,))
    told = ring.told(["spark2"])
    assert told["keys"] == [fingerprint(old), fingerprint(new)]
    assert told["peers"]["spark2"]["keys"] == [fingerprint(new)]  # type: ignore[index]
    assert ring.toward("spark2") == (new, old) and ring.toward("spark3") == (old, new)
    assert old.hex() not in str(told) and new.hex() not in str(told)


def test_what_is_no_file_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cluster.key", 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        load_keys(tmp_path / "cluster.key")
