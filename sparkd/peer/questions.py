"""What any node may ask any other, besides the exchange: what its doctor finds, and how much the link carries.

Each question has a conversation of its own, opened for it and closed after it: questions are rare, and take seconds.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from sparkd.model.errors import SparkdError
from sparkd.peer import throughput
from sparkd.peer.auth import new_nonce, stream_proof
from sparkd.peer.client import Conversation, PeerRejected
from sparkd.peer.keys import Keyring
from sparkd.peer.throughput import Received
from sparkd.peer.wire import DIAGNOSE_MAX_S, NO_VERB, DiagnoseRequest, Reason, ThroughputAnswer, ThroughputRequest, Verb

ANSWERED_MAX_S = DIAGNOSE_MAX_S + 1.0  # a node that came to no answer still says so


@dataclass(frozen=True)
class Way:
    """From this node to another, over the link."""

    node: str
    own_address: str
    peer: str
    address: str
    port: int
    keyring: Keyring


class OlderError(SparkdError):
    """The peer's sparkd does not know the question."""

    def __init__(self, peer: str) -> None:
        super().__init__(f"its sparkd is older: {peer} cannot be asked", hint="install the same sparkd on all nodes")


async def diagnose(way: Way, *, answered_max_s: float = ANSWERED_MAX_S) -> bytes:
    """The other node's Diagnosis, as JSON, within that and 3 s. Raises PeerError's kinds, OlderError."""
    conversation = _conversation(way)
    try:
        return await conversation.say_large(Verb.DIAGNOSE, DiagnoseRequest(), answered_max_s)
    except PeerRejected as error:
        raise _older(error, way.peer) from error
    finally:
        await conversation.close()


async def measure(way: Way, *, streams: int, seconds: float) -> Received:
    """What the other node can send to this one. Raises PeerError's kinds, OlderError, SparkdError."""
    token = new_nonce()
    proofs = [{stream_proof(key, way.peer, way.node, token, n) for key in way.keyring.keys} for n in range(streams)]
    stop = threading.Event()
    conversation = _conversation(way)
    try:
        with throughput.listening(way.own_address) as ear:
            asked = ThroughputRequest(token=token, port=ear.getsockname()[1], streams=streams, seconds=seconds)
            receiving = asyncio.ensure_future(
                asyncio.to_thread(throughput.receive, ear, proofs, peer=way.address, seconds=seconds, stop=stop)
            )
            try:
                await conversation.say(Verb.THROUGHPUT, asked, ThroughputAnswer, seconds)
                return await receiving
            finally:
                stop.set()
                await asyncio.gather(receiving, return_exceptions=True)  # before its ear is taken away
    except PeerRejected as error:
        raise _older(error, way.peer) from error
    finally:
        await conversation.close()


async def send(way: Way, asked: ThroughputRequest) -> ThroughputAnswer:
    """The answer to the other node's `measure`: only to its address of the link, whatever it says."""
    key = way.keyring.toward(way.peer)[0]  # while one is rotated: that with which it has just asked
    proofs = [stream_proof(key, way.node, way.peer, asked.token, n) for n in range(asked.streams)]
    stop = threading.Event()
    try:
        sent = await asyncio.to_thread(
            throughput.send, way.own_address, way.address, asked.port, proofs, seconds=asked.seconds, stop=stop
        )
    finally:
        stop.set()  # the asker has gone: the thread follows
    return ThroughputAnswer(sent_bytes=sent)


def _conversation(way: Way) -> Conversation:
    return Conversation(way.node, way.peer, f"http://{way.address}:{way.port}", way.keyring, kept_alive=False)


def _older(error: PeerRejected, peer: str) -> SparkdError:
    """A sparkd without the verb says that the message is malformed; what it has never said otherwise."""
    unknown = error.reason == Reason.MALFORMED and NO_VERB in error.message
    return OlderError(peer) if unknown else error
