"""`sparkd init` and `sparkd key`: as processes of their own, against a daemon's real socket."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cli_daemon import Daemon, Home

from sparkd.cli.key import judge, lacking
from sparkd.peer.keys import fingerprint, load_keys


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "etc/cluster.key"


class Knowing(Daemon):
    """A daemon that has these keys and heard the other node with those."""

    def __init__(self, keys: list[str], shown: list[str] | None, seconds_ago: float = 0.5) -> None:
        super().__init__()
        peer = None if shown is None else {"keys": shown, "seconds_ago": seconds_ago}
        self.told: dict[str, Any] = {"keys": keys, "peers": {"spark2": peer}}

    def verbs(self) -> dict[str, Any]:
        return {"keys": self._keys}

    async def _keys(self, request: dict[str, Any]) -> Any:
        yield self.told


def prints(path: Path) -> list[str]:
    return [fingerprint(key) for key in load_keys(path)]


def test_init_makes_a_key_before_there_is_a_daemon_and_never_twice(home: Home, path: Path) -> None:
    done = home.sparkd("init", "--key", str(path))
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout and "0600" in done.stdout and "install -D -m 0600" in done.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert text.strip() not in done.stdout
    again = home.sparkd("init", "--key", str(path), "--json")
    assert again.returncode == 2 and "sparkd key rotate" in json.loads(again.stdout)["error"]["hint"]
    assert path.read_text() == text
    told = json.loads(home.sparkd("init", "--key", str(path.with_name("b")), "--json").stdout)
    assert told["mode"] == "0600" and told["fingerprint"] == prints(path.with_name("b"))[0]


def test_a_rotation_from_its_begin_to_its_end(home: Home, path: Path) -> None:
    home.sparkd("init", "--key", str(path))
    (old,) = prints(path)
    assert home.sparkd("key", "rotate", "--key", str(path)).returncode == 0
    assert prints(path)[0] == old and len(prints(path)) == 2
    new = prints(path)[1]
    assert "under way already" in home.sparkd("key", "rotate", "--key", str(path)).stderr

    def drop(*more: str) -> Any:
        return home.sparkd("key", "drop", "--key", str(path), *more)

    refused = drop()
    assert refused.returncode == 2 and "is not known" in refused.stderr
    for keys, shown, says in (
        ([old], [old], f"does not have {new} yet"),
        ([old, new], None, "spark2 has not shown"),
        ([old, new], [old], "spark2 has not shown"),
    ):
        with home.daemon(Knowing(keys, shown)):
            refused = drop()
            assert refused.returncode == 2 and says in refused.stderr
            assert prints(path) == [old, new]
    with home.daemon(Knowing([old, new], [old, new])):
        status = home.sparkd("key", "status", "--key", str(path), "--json")
        assert status.returncode == 1 and "sparkd key drop" in json.loads(status.stdout)["next"]
        assert drop().returncode == 0
        assert prints(path) == [new]
        status = home.sparkd("key", "status", "--key", str(path))
        assert status.returncode == 1 and "systemctl restart sparkd takes it" in status.stdout
    with home.daemon(Knowing([new], [new])):
        status = home.sparkd("key", "status", "--key", str(path))
        assert status.returncode == 0, status.stdout
        assert load_keys(path)[0].hex() not in status.stdout
        assert "nothing to drop" in drop().stderr


def test_a_rotation_can_be_given_up(home: Home, path: Path) -> None:
    home.sparkd("init", "--key", str(path))
    (old,) = prints(path)
    home.sparkd("key", "rotate", "--key", str(path))
    with home.daemon(Knowing([old], [old])):  # nobody has taken the new one yet
        assert home.sparkd("key", "drop", "--new", "--key", str(path)).returncode == 0
    assert prints(path) == [old]
    home.sparkd("key", "rotate", "--key", str(path))
    assert home.sparkd("key", "drop", "--force", "--key", str(path)).returncode == 0
    assert prints(path) != [old] and len(prints(path)) == 1


def test_without_a_daemon_status_cannot_tell(home: Home, path: Path) -> None:
    home.sparkd("init", "--key", str(path))
    done = home.sparkd("key", "status", "--key", str(path))
    assert done.returncode == 3 and prints(path)[0] in done.stdout and "is not running" in done.stdout


def test_a_file_that_is_none_says_how_to_make_one(home: Home, path: Path) -> None:
    for words in (["status"], ["rotate"], ["drop"]):
        done = home.sparkd("key", *words, "--key", str(path))
        assert done.returncode == 64 and "sparkd init" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("held", "answer", "exit_code", "says"),
    [
        (["a"], None, 3, "start sparkd"),
        (["a"], {"keys": ["a"], "peers": {"s": {"keys": ["a"], "seconds_ago": 1}}}, 0, "nothing"),
        (["a"], {"keys": ["a"], "peers": {"s": None}}, 3, "s was not heard"),
        (["a"], {"keys": ["a"], "peers": {"s": {"keys": ["a"], "seconds_ago": 3600}}}, 3, "s was not heard"),
        (["a"], {"keys": ["a"], "peers": {}}, 0, "nothing"),
        (["a", "b"], {"keys": ["a"], "peers": {"s": None}}, 1, "restart sparkd takes it"),
        (["a", "b"], {"keys": ["a", "b"], "peers": {"s": {"keys": ["a"], "seconds_ago": 1}}}, 1, "copy the file to s"),
        (
            ["a", "b"],
            {"keys": ["a", "b"], "peers": {"s": {"keys": ["a", "b"], "seconds_ago": 1}}},
            1,
            "sparkd key drop",
        ),
    ],
)
def test_the_next_step(held: list[str], answer: dict[str, Any] | None, exit_code: int, says: str) -> None:
    found, advice = judge(held, answer)
    assert (found, says in advice) == (exit_code, True), advice


def test_who_lacks_the_key_that_would_stay() -> None:
    peers = {"s": {"keys": ["a", "b"], "seconds_ago": 1.0}, "t": {"keys": ["a"], "seconds_ago": 1.0}, "u": None}
    assert lacking("b", {"peers": peers}) == ["t", "u"]
