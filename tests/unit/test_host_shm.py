"""Leftover segments: real files in /dev/shm, mapped and opened by real processes, in other mount namespaces too."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparkd.host.shm import SHM, Segment, leftovers, remove, segments

OLD = time.time() - 3600
FUTURE = time.time() + 3600

HOLD = "import sys, time; file = open(sys.argv[1], 'r+b'); print(flush=True); time.sleep(300)"
MAP = (
    "import mmap, os, sys, time; file = os.open(sys.argv[1], os.O_RDWR); kept = mmap.mmap(file, 4096); "
    "os.close(file); print(flush=True); time.sleep(300)"
)


# As vLLM does: the lock of a spawning program keeps its name in /dev/shm, but its maker maps it under another one.
LOCK = (
    "import multiprocessing, sys, time; lock = multiprocessing.get_context('spawn').Lock(); "
    "open(sys.argv[1], 'w').write(lock._semlock.name); print(flush=True); time.sleep(300)"
)


class Lab:
    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._users: list[subprocess.Popen[str]] = []

    def make(self, name: str = "", at: float = OLD) -> Path:
        path = SHM / (name or f"psm_{secrets.token_hex(4)}")
        path.write_bytes(b"x" * 8192)
        os.utime(path, (at, at))
        return self.owns(path)

    def owns(self, path: Path) -> Path:
        self._paths.append(path)
        return path

    def use(self, program: str, path: Path | str, *around: str) -> int:
        user = subprocess.Popen([*around, sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        self._users.append(user)
        assert user.stdout and user.stdout.readline() == "\n", "the user of the segment did not start"
        return user.pid

    def stop_users(self) -> None:
        while self._users:
            user = self._users.pop()
            user.kill()
            user.communicate()

    def close(self) -> None:
        self.stop_users()
        for path in self._paths:
            path.unlink(missing_ok=True)


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
def everyone() -> Iterator[Callable[[], Path]]:
    """Views of /proc, each as of its call."""
    views: list[Path] = []

    def view() -> Path:
        views.append(_readable())
        return views[-1]

    yield view
    for one in views:
        shutil.rmtree(one)


def find(path: Path, proc: Path = Path("/proc")) -> Segment:
    (one,) = [one for one in segments(proc=proc) if one.path == path]
    return one


def test_only_engine_names_are_looked_at(lab: Lab) -> None:
    wanted = {lab.make(), lab.make(f"sem.mp-{secrets.token_hex(3)}_z")}
    others = {
        lab.make(f"psm_{secrets.token_hex(4)}0"),
        lab.make("psm_ABCDEF01"),
        lab.make(f"sem.{secrets.token_hex(4)}"),
    }
    link = SHM / f"psm_{secrets.token_hex(4)}"
    link.symlink_to("/etc/hostname")
    try:
        found = {one.path for one in segments()}
    finally:
        link.unlink()
    assert wanted <= found and not found & (others | {link})


def test_a_segment_in_use_names_its_users(lab: Lab) -> None:
    path = lab.make()
    users = {lab.use(HOLD, path), lab.use(MAP, path)}
    segment = find(path)
    assert set(segment.users) == users
    assert segment.bytes == 8192 and abs(segment.modified_at - OLD) < 1
    assert leftovers([segment], older_than=FUTURE) == []


def test_the_maker_of_a_semaphore_is_its_user(lab: Lab, tmp_path: Path, everyone: Callable[[], Path]) -> None:
    maker = lab.use(LOCK, tmp_path / "name")
    path = lab.owns(SHM / f"sem.{(tmp_path / 'name').read_text().removeprefix('/')}")
    maps = Path(f"/proc/{maker}/maps").read_text()
    assert path.name not in maps, "glibc maps it under its own name now: the test proves nothing any more"
    segment = find(path, everyone())
    assert segment.users == (maker,)
    assert leftovers([segment], older_than=FUTURE) == []


@pytest.mark.parametrize("program", [HOLD, MAP])
def test_a_user_that_sees_it_elsewhere_is_seen(lab: Lab, program: str, tmp_path: Path) -> None:
    """A container has /dev/shm mounted wherever it likes: device and inode tell, not the path."""
    _needs_root()
    path = lab.make()
    script = 'mount --bind /dev/shm "$0" && exec "$@"'
    user = lab.use(program, tmp_path / path.name, "unshare", "-m", "bash", "-c", script, str(tmp_path))
    assert find(path).users == (user,)


def test_the_same_name_in_a_private_dev_shm_is_another_file(lab: Lab, everyone: Callable[[], Path]) -> None:
    _needs_root()
    path = lab.make()
    script = f'mount -t tmpfs tmpfs /dev/shm && head -c 8192 /dev/zero > {path} && exec "$@"'
    lab.use(MAP, path, "unshare", "-m", "bash", "-c", script, "bash")
    segment = find(path, everyone())
    assert segment.users == ()
    assert leftovers([segment], older_than=FUTURE) == [segment]


def test_what_cannot_be_looked_into_is_nobodys_leftover(lab: Lab) -> None:
    _needs_root()
    path = lab.make()
    certain = _as_nobody(lambda: "certain" if find(path).certain else "uncertain")
    assert certain == "uncertain"
    uncertain = replace(find(path), certain=False)
    assert leftovers([uncertain], older_than=FUTURE) == []
    assert remove([uncertain]) == [] and path.exists()


def test_a_second_name_makes_it_uncertain(lab: Lab, everyone: Callable[[], Path]) -> None:
    _needs_root()
    path = lab.make()
    assert find(path, everyone()).certain
    other = SHM / f"other-{secrets.token_hex(4)}"
    os.link(path, other)
    try:
        assert not find(path, everyone()).certain
    finally:
        other.unlink()


def test_leftovers_are_old_unused_and_certain() -> None:
    plain = Segment(Path("/dev/shm/psm_00000000"), 4096, 1000.0, 7, (), certain=True, device=3)
    assert leftovers([plain], older_than=1001) == [plain]
    assert leftovers([plain], older_than=1000) == []  # as young as the launch: may be its own
    assert leftovers([replace(plain, users=(5,))], older_than=1001) == []
    assert leftovers([replace(plain, certain=False)], older_than=1001) == []


def test_leftovers_go_when_their_users_have_gone(lab: Lab, everyone: Callable[[], Path]) -> None:
    _needs_root()
    path, semaphore = lab.make(), lab.make(f"sem.mp-{secrets.token_hex(4)}")
    lab.use(MAP, path)
    lab.stop_users()
    found = [find(path, everyone()), find(semaphore, everyone())]
    assert leftovers(found, older_than=FUTURE) == found
    assert remove(found, proc=everyone()) == found
    assert not path.exists() and not semaphore.exists()
    assert remove(found, proc=everyone()) == []


def test_a_look_again_before_the_removal_saves_what_has_changed(lab: Lab, everyone: Callable[[], Path]) -> None:
    _needs_root()
    opened, made_anew = lab.make(), lab.make()
    found = [find(opened, everyone()), find(made_anew, everyone())]
    assert leftovers(found, older_than=FUTURE) == found
    lab.use(HOLD, opened)
    beside = made_anew.with_name(f"new-{secrets.token_hex(4)}")
    beside.write_bytes(b"new")  # exists beside the old one, so its inode is another
    beside.replace(made_anew)
    assert remove(found, proc=everyone()) == []
    assert opened.exists() and made_anew.read_bytes() == b"new"


def test_no_directory_is_no_segment(tmp_path: Path) -> None:
    assert segments(tmp_path / "none") == []


def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mount namespaces, and looking into every process")


def _readable() -> Path:
    """/proc as of now, without what not even root may look into here (in some sandboxes that is process 1)."""
    view = Path(tempfile.mkdtemp(prefix="proc-"))
    for real in Path("/proc").glob("[0-9]*"):
        try:
            (real / "maps").read_bytes()
            (view / real.name).symlink_to(real)
        except PermissionError:
            (view / real.name / "fd").mkdir(parents=True)
            (view / real.name / "maps").touch()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return view


def _as_nobody(question: Callable[[], str]) -> str:
    """Answers it in a child without privileges."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            os.write(writing, question().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said
