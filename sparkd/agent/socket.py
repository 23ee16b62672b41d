"""The local control socket, the daemon's side: who may ask for what, each client bounded. The other side is local.py.

Root may do everything, members of the group `sparkd` may look, and nobody else may do anything: the socket's mode says so,
and each client is asked for once more, by its uid and groups as the kernel has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import logging
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkd.agent.local import GROUP, how_to_join, no_member
from sparkd.agent.tasks import unfailing
from sparkd.model.errors import EXIT_UNKNOWN, SparkdError, UsageError

log = logging.getLogger(__name__)

Request = dict[str, Any]  # the line that came: "verb" and whatever else that verb takes
Line = dict[str, Any] | bytes  # bytes: one line of JSON that another node wrote, passed on as it is
Verb = Callable[[Request], AsyncIterator[Line]]

CLIENTS_MAX = 32
CLIENTS_FOR_ROOT = 8  # of them: watching users cannot keep root from a `sparkd stop`
CLIENTS_MAX_PER_USER = 8  # nor one user the others
REQUEST_MAX_BYTES = 64 * 1024
REQUEST_MAX_S = 10.0  # for the request to come
UNREAD_MAX_S = 10.0  # for a client to read what it was sent
LOST_LOOK_S = 2.0  # how often the socket's file is looked at
GONE_LOOK_S = 1.0  # how often a client that said all it had to say is looked at

_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; the socket module has no name for it
_GROUPS_MAX = 256  # Python's getsockopt gives at most 1024 bytes


@dataclass(frozen=True)
class Caller:
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def may_look(self, group: str) -> bool:
        return self.is_root or _group_id(group) in self.groups


class ControlServer:
    """Serves `verbs` at `path`. `looking` names those that change nothing and cost little: for members of `group` too."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb], looking: frozenset[str], *, group: str = GROUP) -> None:
        self._path, self._verbs, self._looking, self._group = path, verbs, looking, group
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], int] = {}  # and whose each is
        self._inode = 0
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises SparkdError where another daemon listens already, or the socket cannot be made."""
        _refuse_second(self._path)
        try:
            await self._listen()
        except OSError as error:
            raise SparkdError(f"the control socket cannot be made: {error.strerror}", where=str(self._path)) from error
        self._keeper = asyncio.create_task(unfailing("the keeper of the control socket", self._keep))

    async def _listen(self) -> None:
        """Raises OSError."""
        listening = _bind(self._path, self._group)
        self._inode = self._path.stat().st_ino
        before = self._server
        self._server = await asyncio.start_unix_server(self._meet, sock=listening, limit=REQUEST_MAX_BYTES)
        if before is not None:
            before.close()

    async def _keep(self) -> None:
        """Whoever clears /run takes the socket's name away, and a daemon without one seems not to run: it is made anew."""
        refused = ""
        while True:
            await asyncio.sleep(LOST_LOOK_S)
            if self._path.exists():
                continue
            try:
                await self._listen()
                log.warning("the control socket %s was gone: made anew", self._path)
                refused = ""
            except OSError as error:
                if str(error) != refused:
                    log.warning("the control socket %s is gone and cannot be made anew: %s", self._path, error)
                refused = str(error)

    async def stop(self) -> None:
        if self._server is None or self._keeper is None:
            return
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._server = None
        with contextlib.suppress(OSError):  # it may be a successor's by now
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    # --- one client ---

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            caller = _caller(writer.get_extra_info("socket"))
            is_full = self._is_full(caller)
            self._clients[task] = caller.uid
            writer.transport.set_write_buffer_limits(high=0)  # what was sent is with the kernel: closing cuts no answer
            if is_full:
                await _send(writer, _error(SparkdError("sparkd is busy with too many clients", hint="try again soon")))
            else:
                await self._serve(reader, writer, caller)
        except (OSError, TimeoutError):
            pass  # the client is gone, or reads nothing: there is nobody to tell
        except asyncio.CancelledError:
            pass  # the daemon stops
        finally:
            self._clients.pop(task, None)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    def _is_full(self, caller: Caller) -> bool:
        if caller.is_root:
            return len(self._clients) >= CLIENTS_MAX
        of_user = sum(uid == caller.uid for uid in self._clients.values())
        return of_user >= CLIENTS_MAX_PER_USER or len(self._clients) >= CLIENTS_MAX - CLIENTS_FOR_ROOT

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        try:
            if not caller.may_look(self._group):  # before anything is read of it
                raise SparkdError(no_member(caller.uid, self._group), hint=how_to_join(self._group))
            request = await _request(reader)
            verb = self._allowed(request, caller)
        except SparkdError as error:
            await _send(writer, _error(error))
            return
        answering = asyncio.ensure_future(_answer(verb(request), writer, str(request["verb"])))
        leaving = asyncio.ensure_future(_left(reader, writer.get_extra_info("socket")))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    def _allowed(self, request: Request, caller: Caller) -> Verb:
        name = request["verb"]
        verb = self._verbs.get(name)
        if verb is None:
            known = ", ".join(sorted(self._verbs))
            raise UsageError(f"this sparkd cannot do {name[:40]!r}", hint=f"it can do: {known}")
        if not caller.is_root and name not in self._looking:
            raise SparkdError(f"{name} is for root; you are user {caller.uid}", hint=f"sudo sparkd {name}")
        return verb


async def _request(reader: asyncio.StreamReader) -> Request:
    """Raises SparkdError where no whole request comes in time."""
    try:
        async with asyncio.timeout(REQUEST_MAX_S):
            line = await reader.readline()
        request = json.loads(line)
    except TimeoutError:
        raise UsageError(f"no request came within {REQUEST_MAX_S:g} s") from None
    except (ValueError, RecursionError):  # readline raises ValueError for a line beyond the limit
        raise UsageError(f"the request is not one line of JSON of at most {REQUEST_MAX_BYTES} bytes") from None
    if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
        raise UsageError('the request is not an object with a "verb"')
    return request


async def _answer(answers: AsyncIterator[Line], writer: asyncio.StreamWriter, verb: str) -> None:
    """Send what the verb gives, line by line; an error is the last line."""
    try:
        async for answer in answers:
            await _send(writer, answer)
    except SparkdError as error:
        await _send(writer, _error(error))
    except (OSError, TimeoutError):
        raise  # of the sending
    except Exception:  # the edge: one verb's fault is not the daemon's, and no operator is shown a traceback
        log.exception("the verb %s could not be answered", verb)
        fault = SparkdError(f"{verb} met a fault of sparkd", hint="journalctl -u sparkd -n 50")
        fault.exit_code = EXIT_UNKNOWN
        await _send(writer, _error(fault))
    finally:
        if close := getattr(answers, "aclose", None):
            await close()


async def _send(writer: asyncio.StreamWriter, answer: Line) -> None:
    """Raises OSError (the client is gone) or TimeoutError (it does not read)."""
    line = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    writer.write(line + b"\n")
    async with asyncio.timeout(UNREAD_MAX_S):
        await writer.drain()


def _error(error: SparkdError) -> dict[str, Any]:
    told = {"message": error.message, "where": error.where, "hint": error.hint, "exit_code": error.exit_code}
    return {"error": told}


async def _left(reader: asyncio.StreamReader, connection: socket.socket) -> None:
    """Returns when the client has gone. One that only closed its sending side (`socat`) still reads."""
    with contextlib.suppress(OSError):
        while await reader.read(4096):
            pass  # a second request is not answered
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    while not poll.poll(0):  # POLLHUP is always reported: both directions are closed
        await asyncio.sleep(GONE_LOOK_S)


# --- the socket itself ---------------------------------------------------------------------------


def _caller(connection: Any) -> Caller:
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    packed = b""
    with contextlib.suppress(OSError):  # more groups than fit: the primary one has to do
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    return Caller(pid, uid, frozenset({gid, *(group for (group,) in struct.iter_unpack("I", packed))}))


def _refuse_second(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return  # nobody listens; what a dead daemon left behind is replaced
    raise SparkdError("another sparkd is running on this node", where=str(path), hint="systemctl status sparkd")


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _bind(path: Path, group: str) -> socket.socket:
    """Made beside and renamed into place: there is never a moment without, or with the wrong mode.

    0660 and the group's where there is one, 0600 where there is none or it cannot be given to it.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o755)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(beside))
        beside.chmod(0o600)
        _give(beside, group)
        listening.listen(CLIENTS_MAX)
        listening.setblocking(False)
        beside.replace(path)
    except OSError:
        listening.close()
        raise
    return listening


def _give(path: Path, group: str) -> None:
    id = _group_id(group)
    if id is None:
        return
    try:
        if path.stat().st_gid != id:  # the unit's group is this one: then it is the group's already
            os.chown(path, -1, id)
        path.chmod(0o660)
    except PermissionError:
        log.warning("members of the group %s cannot ask this sparkd: %s stays root's", group, path)
