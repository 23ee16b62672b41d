"""The local control socket: real sockets, real peers of the kernel's naming, both ends."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparkd.agent import local
from sparkd.agent.socket import CLIENTS_FOR_ROOT, CLIENTS_MAX, CLIENTS_MAX_PER_USER, ControlServer, Request
from sparkd.model.errors import EXIT_UNKNOWN, EXIT_USAGE, SparkdError, UnreachableError, UsageError

LIMIT_S = 30.0
NOBODY = 65534


class Verbs:
    """What a daemon could answer; counts the streams that are open."""

    def __init__(self) -> None:
        self.open = 0
        self.stopped = 0

    def all(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in ("status", "watch", "quiet", "stop", "refuse", "fault", "passed_on")
        }

    async def status(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        yield {"node": "spark1", "asked": request}

    async def watch(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        self.open += 1
        try:
            for number in range(int(request.get("count", 10**9))):
                yield {"number": number}
                await asyncio.sleep(0)
        finally:
            self.open -= 1

    async def quiet(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        self.open += 1
        try:
            yield {"says": "first"}
            await asyncio.sleep(3600)
        finally:
            self.open -= 1

    async def stop(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        self.stopped += 1
        yield {"says": "stopped"}

    async def refuse(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        yield {"says": "so far"}
        raise UsageError("no such profile", where="recipe r", hint="see `sparkd profile list`")

    async def passed_on(self, request: Request) -> AsyncIterator[bytes]:
        yield b'{"node": "spark2", "diagnosis": {"findings": [%s]}}' % b", ".join([b'"x"'] * 400_000)

    async def fault(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        yield {}
        raise ZeroDivisionError("a fault")


def serve(path: Path, test: Callable[[Verbs], Any], group: str = "sparkd") -> Verbs:
    """Run the blocking `test` (a command's side) against a server at `path`."""
    verbs = Verbs()

    async def main() -> None:
        server = ControlServer(path, verbs.all(), frozenset({"status", "watch", "quiet"}), group=group)
        await server.start()
        try:
            await asyncio.get_running_loop().run_in_executor(None, test, verbs)
        finally:
            await server.stop()

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))
    return verbs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "sparkd.sock"


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def raw(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT_S)
        client.connect(str(path))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        got = b""
        while part := client.recv(65536):
            got += part
    return got


def test_a_question_and_its_answer(path: Path) -> None:
    def test(_: Verbs) -> None:
        assert local.ask(path, "status", last=3) == {"node": "spark1", "asked": {"verb": "status", "last": 3}}
        assert [answer["number"] for answer in local.stream(path, "watch", count=3)] == [0, 1, 2]
        assert json.loads(raw(path, b'{"verb": "status"}\n'))["node"] == "spark1"  # a half-closed client still reads

    serve(path, test)


def test_what_another_node_wrote_is_passed_on_as_it_is(path: Path) -> None:
    def test(_: Verbs) -> None:
        assert len(local.ask(path, "passed_on")["diagnosis"]["findings"]) == 400_000  # 2 MB in one line

    serve(path, test)


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_its_mode_lets_root_in_and_the_group_and_nobody_else(path: Path, umask: int) -> None:
    old = os.umask(umask)
    group = grp.getgrgid(os.getegid())

    def theirs(_: Verbs) -> None:
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, group.gr_gid)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755

    def roots(_: Verbs) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    try:
        serve(path, theirs, group=group.gr_name)
        assert not path.exists()
        serve(path, roots, group="no-such-group")
    finally:
        os.umask(old)


def test_without_a_daemon_it_says_how_to_start_one(path: Path) -> None:
    with pytest.raises(UnreachableError, match="sparkd is not running on this node") as error:
        local.ask(path, "status")
    assert error.value.hint == "systemctl start sparkd"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # what a killed daemon leaves
    with pytest.raises(UnreachableError, match="is not running"):
        local.ask(path, "status")
    serve(path, lambda _: local.ask(path, "status"))  # and it is replaced


def test_a_socket_that_somebody_removed_is_made_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def test(_: Verbs) -> None:
        answers = local.stream(path, "quiet")
        assert next(answers) == {"says": "first"}
        path.unlink()
        deadline = time.monotonic() + LIMIT_S
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert local.ask(path, "status")["node"] == "spark1"
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
        answers.close()

    serve(path, test)
    assert "was gone: made anew" in caplog.text
    assert not path.exists()


def test_a_second_daemon_does_not_take_the_socket_of_the_first(path: Path) -> None:
    def test(_: Verbs) -> None:
        with pytest.raises(SparkdError, match="another sparkd is running"):
            serve(path, lambda _: None)
        assert local.ask(path, "status")["node"] == "spark1"

    serve(path, test)


def test_a_daemon_that_does_not_answer_is_unknown(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen()
        with pytest.raises(UnreachableError, match="did not answer within") as error:
            local.ask(path, "status", timeout_s=0.05)
        assert error.value.exit_code == EXIT_UNKNOWN


def test_the_daemons_words_arrive_whole(path: Path) -> None:
    def test(_: Verbs) -> None:
        answers = local.stream(path, "refuse")
        assert next(answers) == {"says": "so far"}
        with pytest.raises(SparkdError) as error:
            next(answers)
        told = error.value
        assert (told.message, told.where, told.exit_code) == ("no such profile", "recipe r", EXIT_USAGE)
        assert told.hint == "see `sparkd profile list`"
        with pytest.raises(SparkdError, match="cannot do 'reboot'") as error:
            local.ask(path, "reboot")
        assert "status" in error.value.hint

    serve(path, test)


def test_who_reads_late_misses_nothing(path: Path) -> None:
    """What the kernel does not take at once waits in the daemon; the end of the answer is no reason to drop it."""

    lines = 2000  # more than the kernel holds, less than asyncio does

    def test(verbs: Verbs) -> None:
        answers = local.stream(path, "watch", count=lines)
        first = next(answers)
        time.sleep(0.5)  # by now the daemon has said all, or waits for us
        assert [answer["number"] for answer in [first, *answers]] == list(range(lines))

    serve(path, test)


def test_a_fault_of_one_verb_is_told_without_its_traceback(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def test(_: Verbs) -> None:
        with pytest.raises(SparkdError, match="fault of sparkd") as error:
            list(local.stream(path, "fault"))
        assert "ZeroDivision" not in str(error.value)
        assert local.ask(path, "status")

    serve(path, test)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("verb", ["watch", "quiet"])
def test_a_client_that_goes_ends_its_stream(path: Path, verb: str) -> None:
    def test(verbs: Verbs) -> None:
        answers = local.stream(path, verb)
        next(answers)
        assert verbs.open == 1
        answers.close()  # type: ignore[attr-defined]
        wait_until(lambda: verbs.open == 0)

    serve(path, test)


def test_streams_end_with_the_daemon(path: Path) -> None:
    def test(verbs: Verbs) -> None:
        next(local.stream(path, "quiet"))
        held.append(local.stream(path, "quiet"))
        next(held[0])

    held: list[Any] = []
    verbs = serve(path, test)
    assert verbs.open == 0
    assert list(held[0]) == []


def test_clients_are_bounded(path: Path) -> None:
    def test(verbs: Verbs) -> None:
        crowd = [local.stream(path, "quiet") for _ in range(CLIENTS_MAX)]
        for stream in crowd:
            next(stream)
        with pytest.raises(SparkdError, match="too many clients"):
            local.ask(path, "status")
        crowd.pop().close()  # type: ignore[attr-defined]
        wait_until(lambda: verbs.open == CLIENTS_MAX - 1)
        assert local.ask(path, "status")
        for stream in crowd:
            stream.close()  # type: ignore[attr-defined]

    if os.geteuid() != 0:
        pytest.skip("needs root: other users have fewer clients")
    serve(path, test)


AS_USER = """
import os, sys
from pathlib import Path
from sparkd.agent import local
from sparkd.model.errors import SparkdError
path, user, groups, *verbs = sys.argv[1:]
os.setgroups([int(group) for group in groups.split(",") if group])
os.setgid(int(user))
os.setuid(int(user))
held = []
for verb in verbs:
    try:
        held.append(local.stream(Path(path), verb))
        print(next(held[-1]))
    except SparkdError as error:
        print("refused:", error.message, "|", error.hint)
"""


def as_user(path: Path, *verbs: str, groups: str = "") -> list[str]:
    """What these verbs answer to another user's process."""
    words = [sys.executable, "-c", AS_USER, str(path), str(NOBODY), groups, *verbs]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A socket that another user can come to."""
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another user")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "run" / "sparkd.sock"


GROUP = grp.getgrgid(1)  # any that exists, in the place of `sparkd`
MEMBER = str(GROUP.gr_gid)


def test_members_of_the_group_look_and_only_root_changes(open_path: Path) -> None:
    def test(verbs: Verbs) -> None:
        assert local.ask(open_path, "stop") == {"says": "stopped"}
        status, stop, refuse = as_user(open_path, "status", "stop", "refuse", groups=MEMBER)
        assert "spark1" in status
        assert stop == "refused: stop is for root; you are user 65534 | sudo sparkd stop"
        assert refuse.startswith("refused: refuse is for root"), "what nobody has named as harmless is not"
        assert verbs.stopped == 1

    serve(open_path, test, group=GROUP.gr_name)


@pytest.mark.parametrize("opened", [False, True], ids=["by its mode", "whatever its mode"])
def test_everyone_else_may_do_nothing_and_is_told_what_to_do(open_path: Path, opened: bool) -> None:
    def test(verbs: Verbs) -> None:
        if opened:
            open_path.chmod(0o666)
        for answer in as_user(open_path, "status", "watch", "stop", "nonsense"):
            assert answer.startswith("refused: sparkd answers root and members of the group")
            assert "usermod -aG" in answer
        assert verbs.stopped == verbs.open == 0

    serve(open_path, test, group=GROUP.gr_name)


def test_without_the_group_it_is_roots_alone(open_path: Path) -> None:
    def test(_: Verbs) -> None:
        assert as_user(open_path, "status", groups=MEMBER)[0].startswith("refused: sparkd answers root")
        assert local.ask(open_path, "status")

    serve(open_path, test, group="no-such-group")


def test_one_user_leaves_room_for_others_and_all_of_them_for_root(open_path: Path) -> None:
    def test(_: Verbs) -> None:
        answers = as_user(open_path, *["quiet"] * (CLIENTS_MAX_PER_USER + 1), groups=MEMBER)
        assert answers[-1].startswith("refused: sparkd is busy")
        assert "first" in answers[-2]
        assert local.ask(open_path, "stop")

    serve(open_path, test, group=GROUP.gr_name)
    assert CLIENTS_MAX_PER_USER <= CLIENTS_MAX - CLIENTS_FOR_ROOT


def test_any_line_is_answered_in_words(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep, long = b"[" * 60_000, b'{"verb": "' + b"x" * 100_000
    lines = st.binary(max_size=200) | st.sampled_from(
        [deep, long, b"", b"null", b"[]", b'{"verb": 1}', b'{"verb": []}']
    )

    def test(_: Verbs) -> None:
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(lines)
        def any_line(line: bytes) -> None:
            try:
                told = json.loads(raw(path, line + b"\n").splitlines()[0])
            except ConnectionError:
                return  # it did not read on after what was too long
            assert told["error"]["exit_code"] == EXIT_USAGE
            assert told["error"]["message"]

        any_line()
        assert local.ask(path, "status")

    serve(path, test)
    assert "Traceback" not in caplog.text


def test_the_commands_side_imports_next_to_nothing() -> None:
    code = "import sys, sparkd.agent.local; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert not {"asyncio", "pydantic", "httpx", "uvicorn", "starlette"} & set(done.stdout.split())
