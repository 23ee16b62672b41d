"""Who speaks, and is it new: signatures and sessions. No wall clock takes part.

Each message is signed (HMAC-SHA256) over its direction, sender, receiver, session, sequence number, verb and body; while a
key is rotated, with both. One signature that verifies is enough.

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
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sparkd.peer.wire import Reason, Refusal

SESSIONS_MAX_PER_PEER = 4  # in use
OFFERS_MAX_PER_PEER = 64
NONCES_MAX_PER_PEER = 1024  # of hellos, remembered so that none is taken twice
PEERS_MAX = 32

_VERB = re.compile(r"[a-z][a-z-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_NONCE = re.compile(r"[0-9a-f]{64}")
_SEQUENCE = re.compile(r"[0-9]{1,15}")
_SIGNATURE = re.compile(r"[0-9a-f]{64}")


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
    verb: str  # a Verb, or one that a newer sparkd has

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


def proven(keys: Sequence[bytes], stamp: Stamp, body: bytes, signatures: Iterable[str]) -> tuple[bytes, ...]:
    """Those of `keys` that made one of `signatures`; none: not authentic. In a time that tells nothing of any of it."""
    given = [signature if _SIGNATURE.fullmatch(signature) else "" for signature in signatures]
    made = [(key, sign(key, stamp, body)) for key in keys]
    matches = [(key, [hmac.compare_digest(ours, theirs) for theirs in given]) for key, ours in made]
    return tuple(key for key, found in matches if any(found))


def stream_proof(key: bytes, sender: str, receiver: str, token: str, stream: int) -> bytes:
    """What a stream of a measurement begins with: made for this sender, receiver, measurement and stream alone."""
    parts = (b"sparkd-stream-1", sender.encode(), receiver.encode(), token.encode(), str(stream).encode())
    return hmac.new(key, _joined(parts), hashlib.sha256).digest()


def new_nonce() -> str:
    """Of 256 bits: said once, by one side."""
    return secrets.token_hex(32)


def session_id(client_nonce: str, server_nonce: str) -> str:
    return hashlib.sha256(_joined((b"session", client_nonce.encode(), server_nonce.encode()))).hexdigest()


def _joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


# --- stamps as HTTP headers ----------------------------------------------------------------------


_SIGNATURES = ("sparkd-signature", "sparkd-signature-2")


def headers(keys: Sequence[bytes], stamp: Stamp, body: bytes) -> dict[str, str]:
    """Stamp and signatures of a message that is sent, one with each key."""
    signed = {name: sign(key, stamp, body) for name, key in zip(_SIGNATURES, keys, strict=False)}
    return {
        "sparkd-from": stamp.sender,
        "sparkd-to": stamp.receiver,
        "sparkd-session": stamp.session,
        "sparkd-sequence": str(stamp.sequence),
        **signed,
    }


def signatures(found: Mapping[str, str]) -> list[str]:
    return [found[name] for name in _SIGNATURES if name in found]


def read_request(found: Mapping[str, str], verb: str) -> tuple[Stamp, list[str]]:
    """Stamp and signatures of a request that came in, not yet verified. Raises Refusal (malformed)."""
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
    if not _VERB.fullmatch(verb):
        raise Refusal(Reason.MALFORMED, "that is no verb")
    sender, receiver, session, sequence, _ = values
    return Stamp(Direction.REQUEST, sender, receiver, session, int(sequence), verb), signatures(found)


# --- sessions, as the server remembers them ------------------------------------------------------


class Sessions:
    """Who speaks with this server, and up to which sequence number. Bounded, and gone after a restart.

    A session counts as offered until its first message proves that the client has the server's nonce. Only who has the
    key can say a new hello, and none is taken twice while this server lives, so someone who repeats what was recorded
    can neither fill this nor push anything out; after a restart each old hello costs one offer, of a table of its own.
    """

    def __init__(self) -> None:
        self._offered: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()
        self._used: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()
        self._nonces: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()

    def offer(self, peer: str, client_nonce: str, session: str) -> None:
        """After an authentic hello. Raises Refusal (replayed) and then changes nothing."""
        if client_nonce in self._nonces.get(peer, ()):
            raise Refusal(Reason.REPLAYED, "this hello was said before")
        _put(self._nonces, peer, client_nonce, 0, NONCES_MAX_PER_PEER)
        _put(self._offered, peer, session, 0, OFFERS_MAX_PER_PEER)

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
            raise Refusal(Reason.REPLAYED, "this message was said before, or a later one of the same session was")
        if offered is not None:
            offered.pop(session, None)
        _put(self._used, peer, session, sequence, SESSIONS_MAX_PER_PEER)

    def __len__(self) -> int:
        return sum(len(sessions) for table in (self._offered, self._used) for sessions in table.values())


def _put(table: OrderedDict[str, OrderedDict[str, int]], peer: str, name: str, value: int, limit: int) -> None:
    """Newest last; the oldest peer and the peer's oldest entry make room."""
    entries = table.setdefault(peer, OrderedDict())
    table.move_to_end(peer)
    entries[name] = value
    entries.move_to_end(name)
    while len(entries) > limit:
        entries.popitem(last=False)
    while len(table) > PEERS_MAX:
        table.popitem(last=False)
