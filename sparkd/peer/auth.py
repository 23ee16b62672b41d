"""Who speaks, and is it new: cluster keys, signatures, sessions. No wall clock takes part.

Each message is signed (HMAC-SHA256) over its direction, sender, receiver, session, sequence number, verb and body.

    client                                             server
      │  hello: session = client's nonce, sequence 0     │
      ├─────────────────────────────────────────────────▶│   a replayed hello opens a session that nobody can use
      │      answer over the same, with the server's nonce
      │◀─────────────────────────────────────────────────┤
      │  session = hash(both nonces), sequence 1, 2, ... │   each must be larger than all before it
      ├─────────────────────────────────────────────────▶│
      │            answer, bound to session and sequence │
      │◀─────────────────────────────────────────────────┤

A message of another direction, node, session or time than the one it was signed for does not verify.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sparkd.model.errors import ConfigError
from sparkd.peer.wire import Reason, Refusal, Verb

KEY_MIN_DIGITS = 32  # hexadecimal: 128 bits
KEY_FILE_MAX_BYTES = 4096
SESSIONS_MAX_PER_PEER = 4
PEERS_MAX = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_NONCE = re.compile(r"[0-9a-f]{64}")
_SEQUENCE = re.compile(r"[0-9]{1,15}")
_SIGNATURE = re.compile(r"[0-9a-f]{64}")


# --- keys ----------------------------------------------------------------------------------------


def new_key() -> str:
    """A fresh cluster key of 256 bits, as a line for the key file."""
    return secrets.token_hex(32)


def load_keys(path: Path) -> tuple[bytes, ...]:
    """The cluster's keys: the first signs, all verify. Two while one is being rotated.

    Empty lines and lines that begin with # are left out. Raises ConfigError where the file cannot be used; no message
    shows any of its content.
    """
    text = _read_private(path)
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        digits = line.strip()
        if not digits or digits.startswith("#"):
            continue
        where = f"{path}:{number}"
        if not re.fullmatch(r"[0-9A-Fa-f]+", digits) or len(digits) % 2:
            raise ConfigError("a cluster key is an even number of hexadecimal digits", where=where, hint=_how_to(path))
        if len(digits) < KEY_MIN_DIGITS:
            raise ConfigError(
                f"the cluster key is too short: it needs {KEY_MIN_DIGITS} hexadecimal digits or more",
                where=where,
                hint=_how_to(path),
            )
        keys.append(bytes.fromhex(digits))
    if not 1 <= len(keys) <= 2:
        held = f"{len(keys)} keys" if keys else "no key"
        raise ConfigError(
            f"one key is needed, or two while one is rotated; the file has {held}", where=str(path), hint=_how_to(path)
        )
    return tuple(keys)


def _read_private(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError("the cluster key is not a file", where=str(path), hint=_how_to(path))
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"the cluster key can be read by others (mode {stat.S_IMODE(mode):04o})",
                    where=str(path),
                    hint=f"chmod 0600 {path}; if others may have read it, make a new one",
                )
            return file.read(KEY_FILE_MAX_BYTES).decode("ascii")
    except OSError as error:
        raise ConfigError(
            f"the cluster key cannot be read: {error.strerror}", where=str(path), hint=_how_to(path)
        ) from error
    except UnicodeDecodeError:
        raise ConfigError("the cluster key is not hexadecimal text", where=str(path), hint=_how_to(path)) from None


def _how_to(path: Path) -> str:
    return f"make one: (umask 077; openssl rand -hex 32 > {path}), and copy it to every node of the cluster"


# --- signatures ----------------------------------------------------------------------------------


class Direction(StrEnum):
    """Part of what is signed, so that nothing can be sent back to where it came from, or mean something else."""

    REQUEST = "request"
    ANSWER = "answer"
    REFUSAL = "refusal"


@dataclass(frozen=True)
class Stamp:
    """What is signed besides the body. An answer has the session and sequence of its request."""

    direction: Direction
    sender: str
    receiver: str
    session: str
    sequence: int
    verb: Verb

    def back(self, direction: Direction) -> Stamp:
        """The stamp of what is sent back for this one."""
        return Stamp(direction, self.receiver, self.sender, self.session, self.sequence, self.verb)


def sign(key: bytes, stamp: Stamp, body: bytes) -> str:
    """HMAC-SHA256 in hexadecimal. Each part goes with its length, so that no two tuples give the same bytes."""
    parts = (
        b"sparkd-1",
        stamp.direction.encode(),
        stamp.sender.encode(),
        stamp.receiver.encode(),
        stamp.session.encode(),
        str(stamp.sequence).encode(),
        stamp.verb.encode(),
        body,
    )
    return hmac.new(key, _joined(parts), hashlib.sha256).hexdigest()


def verifies(keys: Iterable[bytes], stamp: Stamp, body: bytes, signature: str) -> bool:
    """Whether any of the keys made `signature`, in a time that tells nothing of where they differ."""
    if not _SIGNATURE.fullmatch(signature):
        return False
    matches = [hmac.compare_digest(sign(key, stamp, body), signature) for key in keys]
    return any(matches)


def stream_proof(key: bytes, sender: str, receiver: str, token: str, stream: int) -> bytes:
    """What a stream of a measurement begins with: made for this sender, receiver, measurement and stream alone."""
    parts = (b"sparkd-stream-1", sender.encode(), receiver.encode(), token.encode(), str(stream).encode())
    return hmac.new(key, _joined(parts), hashlib.sha256).digest()


def new_nonce() -> str:
    return secrets.token_hex(32)


def session_id(client_nonce: str, server_nonce: str) -> str:
    return hashlib.sha256(_joined((b"session", client_nonce.encode(), server_nonce.encode()))).hexdigest()


def _joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


# --- stamps as HTTP headers ----------------------------------------------------------------------


def headers(key: bytes, stamp: Stamp, body: bytes) -> dict[str, str]:
    """Stamp and signature of a message that is sent."""
    return {
        "sparkd-from": stamp.sender,
        "sparkd-to": stamp.receiver,
        "sparkd-session": stamp.session,
        "sparkd-sequence": str(stamp.sequence),
        "sparkd-signature": sign(key, stamp, body),
    }


def read_request(found: Mapping[str, str], verb: Verb) -> tuple[Stamp, str]:
    """Stamp and signature of a request that came in, not yet verified. Raises Refusal (malformed)."""
    values = []
    for name, pattern in (
        ("sparkd-from", _NAME),
        ("sparkd-to", _NAME),
        ("sparkd-session", _NONCE),
        ("sparkd-sequence", _SEQUENCE),
        ("sparkd-signature", _SIGNATURE),
    ):
        value = found.get(name, "")
        if not pattern.fullmatch(value):
            raise Refusal(Reason.MALFORMED, f"the header {name} is missing or not as sparkd writes it")
        values.append(value)
    sender, receiver, session, sequence, signature = values
    return Stamp(Direction.REQUEST, sender, receiver, session, int(sequence), verb), signature


# --- sessions, as the server remembers them ------------------------------------------------------


class Sessions:
    """Who speaks with this server, and up to which sequence number. Bounded, and gone after a restart.

    A session counts as offered until its first message proves that the client has the server's nonce. Offered sessions
    have a place of their own: someone who replays a captured hello can push those out, never one that is in use.
    """

    def __init__(self) -> None:
        self._offered: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()
        self._used: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()

    def offer(self, peer: str, session: str) -> None:
        """After an authentic hello."""
        _put(self._offered, peer, session, 0)

    def accept(self, peer: str, session: str, sequence: int) -> None:
        """Take one authentic message. Raises Refusal (unknown-session, replayed) and then changes nothing."""
        offered, used = self._offered.get(peer), self._used.get(peer)
        if used is not None and session in used:
            last = used[session]
        elif offered is not None and session in offered:
            last = offered[session]
        else:
            raise Refusal(Reason.UNKNOWN_SESSION, "this session is not known here: sparkd may have been restarted")
        if sequence <= last:
            raise Refusal(Reason.REPLAYED, f"message {sequence} comes after message {last} of the same session")
        if offered is not None:
            offered.pop(session, None)
        _put(self._used, peer, session, sequence)

    def __len__(self) -> int:
        return sum(len(sessions) for table in (self._offered, self._used) for sessions in table.values())


def _put(table: OrderedDict[str, OrderedDict[str, int]], peer: str, session: str, sequence: int) -> None:
    """Newest last; the oldest peer and the peer's oldest session make room."""
    sessions = table.setdefault(peer, OrderedDict())
    table.move_to_end(peer)
    sessions[session] = sequence
    sessions.move_to_end(session)
    while len(sessions) > SESSIONS_MAX_PER_PEER:
        sessions.popitem(last=False)
    while len(table) > PEERS_MAX:
        table.popitem(last=False)
