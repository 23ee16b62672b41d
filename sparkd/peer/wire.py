"""What is said over the link: a closed set of verbs, their messages, and the ways in which one is refused.

No message carries a path, a command or a container argument; plans are compared by digest, never sent.
"""

from __future__ import annotations

import json
import zlib
from enum import StrEnum
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparkd.model.invalid import first_fault
from sparkd.model.recipe import NAME_PATTERN
from sparkd.model.report import Intent, Report

PROTOCOL = 1  # a peer one version away is understood, so that nodes can be upgraded one after the other
BODY_MAX_BYTES = 64 * 1024
HOLD_MAX_S = 5.0  # the longest a server holds a long poll

DIAGNOSIS_MAX_BYTES = 3 * 1024 * 1024  # a node's diagnosis: some 100 KiB; a line of the local socket takes 4 MiB
PACKED_MAX_BYTES = 1024 * 1024  # the same as it is sent
DIAGNOSE_MAX_S = 8.0  # the longest that a node's own doctor is waited for

STREAMS_MAX = 16
MEASURE_MIN_S, MEASURE_MAX_S = 1.0, 5.0


class Verb(StrEnum):
    """Everything that a peer can be asked for."""

    HELLO = "hello"  # opens a session
    EXCHANGE = "exchange"  # a worker's report for the head's intent, long-polled
    ASK = "ask"  # an operator's word that was said on another node
    DIAGNOSE = "diagnose"  # what the node's own doctor finds
    THROUGHPUT = "throughput"  # a bulk transfer back to the asker, who counts


class Reason(StrEnum):
    """Why a message was refused. The words are stable: they go into events, and clients act on them."""

    WRONG_KEY = "wrong-key"  # the signature does not verify: another key, or a message that was tampered with
    WRONG_RECEIVER = "wrong-receiver"  # it was meant for another node
    REFLECTED = "reflected"  # it names the receiver as its sender
    UNKNOWN_SESSION = "unknown-session"  # the server has restarted, or it is an old message: open a new session
    REPLAYED = "replayed"  # the sequence number was used before, or a later one was
    PROTOCOL = "protocol"  # the peer's sparkd is more than one protocol version away
    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    TIMED_OUT = "timed-out"
    REFUSED = "refused"  # understood and authentic, but the node will not do it; `says` has its words
    INTERNAL = "internal"  # a fault of the server; its log has it
    NOT_SPARKD = "not-sparkd"  # said by a client of what it met: that is not a sparkd (or not its answer)


# HTTP statuses are for people with curl; sparkd goes by the reason.
STATUS = {
    Reason.WRONG_KEY: 401,
    Reason.WRONG_RECEIVER: 401,
    Reason.REFLECTED: 401,
    Reason.UNKNOWN_SESSION: 401,
    Reason.REPLAYED: 401,
    Reason.PROTOCOL: 409,
    Reason.TOO_LARGE: 413,
    Reason.TIMED_OUT: 408,
    Reason.REFUSED: 403,
    Reason.INTERNAL: 500,
}


NO_VERB = "there is no such verb"  # how a sparkd that is one version older answers a new question

# All that a sender who cannot sign is ever told, whatever it sent. An older sparkd reads it as the wrong key.
STRANGER = b'{"reason": "wrong-key", "says": "not authenticated"}'
STRANGER_STATUS = 401


class Refusal(Exception):
    """A message that is not taken, and why. `says` is a sentence for the person at the other end."""

    def __init__(self, reason: Reason, says: str) -> None:
        super().__init__(says)
        self.reason = reason
        self.says = says

    @property
    def status(self) -> int:
        return STATUS.get(self.reason, 400)

    def encode(self) -> bytes:
        return json.dumps({"reason": self.reason, "says": self.says}).encode()

    @classmethod
    def decode(cls, body: bytes) -> Refusal | None:
        """None where `body` is no refusal. What comes back may not be authentic: it is cut to printable length."""
        try:
            told = json.loads(body)
            says = "".join(character for character in str(told["says"]) if character.isprintable())
            return cls(Reason(told["reason"]), says[:300])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


class Message(BaseModel):
    """Every message says its protocol. What a newer version adds is ignored here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    protocol: int = PROTOCOL


class Ask(BaseModel):
    """What an operator may ask of the head from a worker."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    verb: Literal["start", "stop", "restart"]
    profile: str | None = Field(default=None, max_length=64, pattern=NAME_PATTERN)


class Answer(BaseModel):
    """What the head says to an ask: one sentence."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    says: str = ""


class Hello(Message):
    """The client's nonce is its session until the server has answered with its own."""


class HelloAnswer(Message):
    nonce: str = Field(pattern=r"^[0-9a-f]{64}$")


class ExchangeRequest(Message):
    report: Report
    known: int = Field(default=0, ge=0)  # the version of the intent that the client has
    hold_s: float = Field(default=0.0, ge=0, le=HOLD_MAX_S, allow_inf_nan=False)


class ExchangeAnswer(Message):
    intent: Intent
    version: int = Field(ge=0)


class AskRequest(Message):
    ask: Ask


class AskAnswer(Message):
    answer: Answer


class DiagnoseRequest(Message):
    """Its answer is a Diagnosis as JSON, packed: the daemons pass it on and do not look into it."""


class ThroughputRequest(Message):
    """Where the asker listens for the streams of this one measurement, on its address of the link."""

    token: str = Field(
        pattern=r"^[0-9a-f]{64}$"
    )  # the asker's, new for each measurement: streams prove that they know it
    port: int = Field(ge=1, le=65535)
    streams: int = Field(ge=1, le=STREAMS_MAX)
    seconds: float = Field(ge=MEASURE_MIN_S, le=MEASURE_MAX_S, allow_inf_nan=False)


class ThroughputAnswer(Message):
    """Said when the last stream has ended. What counts is what the asker received."""

    sent_bytes: int = Field(ge=0)


Kind = TypeVar("Kind", bound=Message)


def decode(body: bytes, kind: type[Kind]) -> Kind:
    """The message in `body`. Raises Refusal where its protocol is too far away, or where it is not such a message."""
    try:
        protocol = Message.model_validate_json(body).protocol  # first, as a distant version may look quite different
        if abs(protocol - PROTOCOL) > 1:
            older = "older" if protocol < PROTOCOL else "newer"
            raise Refusal(Reason.PROTOCOL, f"its sparkd is {older}: it speaks protocol {protocol}, this one {PROTOCOL}")
        return kind.model_validate_json(body)
    except ValidationError as error:
        place, fault = first_fault(error)
        raise Refusal(Reason.MALFORMED, f"{place or 'message'}: {fault}") from error


def encode(message: Message) -> bytes:
    """Raises Refusal where the message is larger than a peer takes."""
    body = message.model_dump_json().encode()
    if len(body) > BODY_MAX_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"the message has {len(body)} bytes, a peer takes {BODY_MAX_BYTES}")
    return body


def pack(content: bytes) -> bytes:
    """Large JSON as it is sent. Raises Refusal where it is larger than a peer takes."""
    if len(content) > DIAGNOSIS_MAX_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"the answer has {len(content)} bytes, a peer takes {DIAGNOSIS_MAX_BYTES}")
    packed = content if len(content) <= BODY_MAX_BYTES else zlib.compress(content, 1)
    if len(packed) > PACKED_MAX_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"the answer has {len(packed)} bytes packed, a peer takes {PACKED_MAX_BYTES}")
    return packed


def unpack(body: bytes) -> bytes:
    """What was packed; no more than DIAGNOSIS_MAX_BYTES are ever made of it. Raises Refusal."""
    if body[:1] == b"{":
        return body
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(body, DIAGNOSIS_MAX_BYTES + 1)
    except zlib.error:
        raise Refusal(Reason.MALFORMED, "the answer is neither JSON nor compressed JSON") from None
    if len(content) > DIAGNOSIS_MAX_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"the answer has more than {DIAGNOSIS_MAX_BYTES} bytes unpacked")
    if not unpacking.eof:
        raise Refusal(Reason.MALFORMED, "the answer broke off")
    return content
