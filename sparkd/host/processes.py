"""The engine's processes as the kernel has them: recognised from /proc, never by a name alone, and ended in order.

A launch puts SPARKD_LAUNCH_ID into the engine's environment and its children inherit it. One thing can hide it: the
`setproctitle` package, with which vLLM names its children "VLLM::EngineCore" and "VLLM::Worker_TP0", overwrites the
memory that /proc/PID/environ shows unless SPT_NOENV is set in the engine's environment. So a process titled `VLLM::*`
that shows no launch id has that of the nearest ancestor that shows one.

Anybody can give a process of his own any environment and any title. So both mean something only of root's processes and
of those in a container, which is what an engine's are; of another user's they are what it says of itself, and prove nothing.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparkd.host import marks, procfs
from sparkd.host.ports import Listener
from sparkd.model.errors import SparkdError
from sparkd.model.plan import LAUNCH_ID_VARIABLE

ANCESTORS_MAX = 16  # a chain longer than this is a loop made of recycled pids
ORPHAN_GRACE_S = 3.0  # orphans, helpers, a top process without its engine: they have nobody left to wind down for
TRACKER_GRACE_S = 1.0  # a resource tracker sees the end of its last process at once, and then unlinks and goes
AFTER_KILL_S = 5.0  # SIGKILL is at once, but freeing a GPU's memory on the way out is not
POLL_S = 0.5  # how often a caller that wants to be called back is, while waiting

_UIDS = re.compile(rb"^Uid:([ \t0-9]+)$", re.MULTILINE)


@dataclass(frozen=True)
class EngineProcess:
    """A living process of an engine, ours or not. `pid` with `start_ticks` names it for the whole boot."""

    pid: int
    start_ticks: int
    comm: str  # at most 15 bytes: "VLLM::Worker_TP"
    title: str  # the command line as `ps` shows it: "VLLM::Worker_TP0"
    argv: tuple[str, ...]
    launch_id: str | None
    container_id: str | None
    ppid: int
    uid: int = 0  # root's only where each of its user ids is: a setuid program is its caller's

    @property
    def is_credible(self) -> bool:
        """Only root can have made it look as it does (or whoever asks, where that is not root)."""
        return self.container_id is not None or self.uid in (0, os.geteuid())

    @property
    def name(self) -> str:
        """Short, for a sentence: "VLLM::Worker_TP0", "vllm serve", or the comm of a helper."""
        for called in (self.title, self.comm):
            if called.startswith(marks.TITLE):
                return called.split()[0]
        return "vllm serve" if marks.is_serve_command(self.argv) else self.comm


@dataclass(frozen=True)
class Ended:
    """Pids that went without SIGKILL (or had gone before), those that SIGKILL ended, and those it could not."""

    terminated: tuple[int, ...]
    killed: tuple[int, ...]
    survivors: tuple[int, ...]
    seconds: float


# --- seeing them ----------------------------------------------------------------------------------


def engine_processes(proc: Path = procfs.PROC) -> list[EngineProcess]:
    """Every process that carries a launch id, is titled `VLLM::*` or runs `vllm serve`, in the order of their pids.

    One pass over /proc. Zombies and processes that vanish meanwhile are not among them.
    Raises OSError where this process can open nothing more: half a list would make the rest look dead.
    """
    found = (_engine_process(pid, proc) for pid in sorted(procfs.pids(proc)))
    processes = {one.pid: one for one in found if one}
    return [_with_inherited_launch(one, processes) for one in processes.values()]


def _engine_process(pid: int, proc: Path) -> EngineProcess | None:
    cmdline = _read(pid, "cmdline", proc)
    if not cmdline or pid == os.getpid():
        return None  # a kernel thread, a zombie, or gone; and we are nobody's engine, whatever our environment says
    launch = marks.launch_id(_read(pid, "environ", proc))
    argv = marks.argv(cmdline)
    about = procfs.stat(pid, proc)
    if about is None or about.dead:
        return None
    titled = argv[0].startswith(marks.TITLE) or about.comm.startswith(marks.TITLE)
    if not (launch or titled or marks.is_serve_command(argv)):
        return None
    one = EngineProcess(
        pid=pid,
        start_ticks=about.start_ticks,
        comm=about.comm,
        title=" ".join(argv).strip(),
        argv=argv,
        launch_id=launch,
        container_id=marks.container_id(_read(pid, "cgroup", proc)),
        ppid=about.ppid,
        uid=_user(_read(pid, "status", proc)),
    )
    return one if one.is_credible else replace(one, launch_id=None)


def _user(status: bytes) -> int:
    """Whose process it is; -1 where nobody can tell. Of four ids (real, effective, saved, file system) the one that is
    not root's: a setuid program runs with the environment and the title that its caller gave it."""
    found = _UIDS.search(status)
    ids = [int(number) for number in found[1].split()] if found else [-1]
    return next((each for each in ids if each != 0), 0)


def _read(pid: int, name: str, proc: Path) -> bytes:
    return procfs.read_living(f"{proc}/{pid}/{name}")


def _with_inherited_launch(process: EngineProcess, others: Mapping[int, EngineProcess]) -> EngineProcess:
    if process.launch_id or not is_titled(process) or not process.is_credible:
        return process
    ancestor: EngineProcess | None = process
    for _ in range(ANCESTORS_MAX):
        ancestor = others.get(ancestor.ppid) if ancestor else None
        if ancestor is None:
            break
        # a parent is never younger than its child: a younger one has merely been given the old parent's number
        if ancestor.launch_id and ancestor.start_ticks <= process.start_ticks:
            return replace(process, launch_id=ancestor.launch_id)
    return process


def launch_environment(pid: int, proc: Path = procfs.PROC) -> dict[str, str]:
    """The environment with which the kernel started it. Raises SparkdError: it is gone, or not ours to read."""
    return marks.environment(_read_or_raise(pid, "environ", proc))


def command_line(pid: int, proc: Path = procfs.PROC) -> tuple[str, ...]:
    """Its argv exactly, empty arguments included. Raises SparkdError: it is gone, or not ours to read."""
    return marks.argv(_read_or_raise(pid, "cmdline", proc))


def _read_or_raise(pid: int, name: str, proc: Path) -> bytes:
    try:
        return procfs.read(f"{proc}/{pid}/{name}")
    except OSError as error:
        says = f"process {pid} is gone" if procfs.gone(error) else f"process {pid} cannot be read: {error.strerror}"
        raise SparkdError(says, where=f"{proc}/{pid}/{name}") from None


# --- judging them ---------------------------------------------------------------------------------


def is_titled(process: EngineProcess) -> bool:
    return process.title.startswith(marks.TITLE) or process.comm.startswith(marks.TITLE)


def is_top(process: EngineProcess) -> bool:
    """The process whose command is `vllm serve`: the one that a SIGTERM stops in order."""
    return not is_titled(process) and marks.is_serve_command(process.argv)


def is_engine_proper(process: EngineProcess) -> bool:
    """One whose death is the engine's: the top process or a `VLLM::*` child, not a resource tracker or a compiler."""
    return is_titled(process) or is_top(process)


def owned(
    process: EngineProcess,
    *,
    container_ids: Collection[str],
    our_ports: Collection[int],
    listeners: Iterable[Listener],
    boot: str,
) -> str | None:
    """Why this process is ours, as a phrase that follows its name; None where that cannot be shown.

    `boot` is the short id of this boot, with which the ids of this node's launches begin: another sparkd, in a system
    container on this host, has a boot id of its own.
    `container_ids` are full ids of our labelled containers; give a mapping {id: name} to have them named.
    """
    if process.launch_id and process.launch_id.startswith(f"{boot}-"):
        return f"carries {LAUNCH_ID_VARIABLE} {process.launch_id}"
    if process.container_id and process.container_id in container_ids:
        name = container_ids[process.container_id] if isinstance(container_ids, Mapping) else process.container_id[:12]
        return f"lives in our container {name}"
    # in a container it is that container's owner's, and of another user anybody's
    if is_engine_proper(process) and process.container_id is None and process.is_credible:
        for listener in listeners:
            if listener.port in our_ports and process.pid in listener.pids:
                return f"is {process.name} and holds our port {listener.port}"
    return None


def told_apart(
    found: Iterable[EngineProcess],
    *,
    living_launch: str | None,
    container_ids: Collection[str],
    our_ports: Collection[int],
    listeners: Sequence[Listener],
    boot: str,
) -> tuple[list[tuple[EngineProcess, str]], list[EngineProcess]]:
    """Those that are ours and of no living launch, each with its proof (as `owned` gives it), and the engines that are
    not provably ours. What belongs to `living_launch` is in neither."""
    stale: list[tuple[EngineProcess, str]] = []
    others: list[EngineProcess] = []
    for process in found:
        if living_launch is not None and process.launch_id == living_launch:
            continue
        why = owned(process, container_ids=container_ids, our_ports=our_ports, listeners=listeners, boot=boot)
        if why is not None:
            stale.append((process, why))
        elif is_engine_proper(process):
            others.append(process)
    return stale, others


# --- ending them ----------------------------------------------------------------------------------


def open_pidfd(process: EngineProcess) -> int | None:
    """A descriptor of exactly this process, None when it is gone. Readable when it has ended; the caller closes it.

    Opened first, compared then: once the descriptor is open the number cannot come to mean another process.
    Raises OSError where this process can open nothing more.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    try:
        about = procfs.stat(process.pid)
    except OSError:
        os.close(descriptor)
        raise
    if about is None or about.start_ticks != process.start_ticks:
        os.close(descriptor)
        return None
    return descriptor


class _Watched:
    """The given processes through their pidfds: the living ones, signals to them, and waiting for them to go."""

    def __init__(self, processes: Iterable[EngineProcess]) -> None:
        self.living: dict[int, EngineProcess] = {}  # by descriptor
        self._poll = select.poll()
        for process in processes:
            if (descriptor := open_pidfd(process)) is not None:
                self.living[descriptor] = process
                self._poll.register(descriptor, select.POLLIN)

    def pids(self) -> set[int]:
        return {process.pid for process in self.living.values()}

    def send(self, number: signal.Signals, pids: Collection[int]) -> None:
        for descriptor, process in self.living.items():
            if process.pid not in pids:
                continue
            try:
                signal.pidfd_send_signal(descriptor, number)
            except ProcessLookupError:
                continue  # ended, and not collected yet: the next wait sees it
            except PermissionError:
                raise SparkdError(
                    f"may not send {number.name} to process {process.pid} ({process.name})",
                    hint="run as root; in a unit, CAP_KILL must be among its capabilities",
                ) from None

    def wait(
        self,
        until: float,
        poll: Callable[[], None] | None,
        awaited: Callable[[EngineProcess], bool] = lambda process: True,
    ) -> None:
        """Returns when none of the awaited is left, or at `until` (monotonic seconds), having looked at least once."""
        while any(map(awaited, self.living.values())):
            left_s = max(0.0, until - time.monotonic())
            ended = self._poll.poll(1000 * min(left_s, POLL_S if poll else left_s))
            for descriptor, _ in ended:
                self._poll.unregister(descriptor)
                os.close(descriptor)
                del self.living[descriptor]
            if poll:
                poll()
            if not ended and left_s == 0:
                return

    def close(self) -> None:
        for descriptor in self.living:
            os.close(descriptor)
        self.living = {}


def end(
    processes: Sequence[EngineProcess],
    *,
    grace_s: float,
    again_s: float = 1.0,
    poll: Callable[[], None] | None = None,
) -> Ended:
    """Ends the given processes, and nobody else, in the order that leaves least behind; waits until they are gone.

    SIGTERM to the top processes and to titled ones whose parent is not given; once more to a top process that lives
    after `again_s`, because a head that is still starting ignores the first; SIGKILL to what is left of the engine
    after `grace_s`. Helpers (shells, resource trackers, the `docker exec` that carries the output) end with their
    engine, so nobody asks them to; SIGKILL for them 3 s after it is gone. The same for a top process all of whose titled
    children have gone: it would wait for ever for connections to close that nobody answers any more. Without a top
    process they are all orphans: SIGTERM to each and SIGKILL after at most 3 s. `poll` is called at least every half second.
    Raises SparkdError when signals are not permitted.
    """
    began = time.monotonic()
    given = {process.pid for process in processes}
    roots = {process.pid for process in processes if is_titled(process) and process.ppid not in given}
    serving = {process.pid for process in processes if is_top(process)}
    # a child that was just forked still has its parent's command line: the top one is the one without such a parent
    tops = {process.pid for process in processes if process.pid in serving and process.ppid not in serving}
    watched = _Watched(processes)
    try:
        if tops:
            watched.send(signal.SIGTERM, roots | tops)
            watched.wait(began + min(again_s, grace_s), poll)
            watched.send(signal.SIGTERM, tops)
            watched.wait(began + grace_s, poll, is_titled if any(map(is_titled, processes)) else is_engine_proper)
            watched.wait(min(began + grace_s, time.monotonic() + ORPHAN_GRACE_S), poll)
        else:
            watched.send(signal.SIGTERM, given)
            watched.wait(began + min(grace_s, ORPHAN_GRACE_S), poll)
        return _kill(watched, given, began, poll)
    finally:
        watched.close()


def kill_now(processes: Sequence[EngineProcess], *, poll: Callable[[], None] | None = None) -> Ended:
    """SIGKILL to all of them, at once, and waits until they are gone (5 s at most)."""
    began = time.monotonic()
    watched = _Watched(processes)
    watched.wait(began, None)  # those that are zombies already were not killed by us
    try:
        return _kill(watched, {process.pid for process in processes}, began, poll)
    finally:
        watched.close()


def _kill(watched: _Watched, given: set[int], began: float, poll: Callable[[], None] | None) -> Ended:
    """SIGKILL to the engine, and a moment later to what stays: the resource tracker unlinks what a killed engine leaves."""
    engine = {process.pid for process in watched.living.values() if is_engine_proper(process)}
    if engine:
        watched.send(signal.SIGKILL, engine)
        watched.wait(time.monotonic() + TRACKER_GRACE_S, poll)
    helpers = watched.pids() - engine
    watched.send(signal.SIGKILL, helpers)
    watched.wait(time.monotonic() + AFTER_KILL_S, poll)
    survivors = watched.pids()
    killed = (engine | helpers) - survivors
    return Ended(
        terminated=tuple(sorted(given - killed - survivors)),
        killed=tuple(sorted(killed)),
        survivors=tuple(sorted(survivors)),
        seconds=time.monotonic() - began,
    )
