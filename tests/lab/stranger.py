"""Someone on the wire who does not have the key: what he can say, record, repeat and pour. Runs in the wire's namespace.

stranger.py say ADDRESS...            various messages to each node; prints the answers as JSON
stranger.py record SECONDS            what passes over the bridge; prints the requests as JSON (hexadecimal)
stranger.py repeat FROM ADDRESS...    requests from standard input to each node; prints the answers as JSON
stranger.py flood SECONDS ADDRESS FROM...   connections without a pause from each of these addresses; prints their number
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import threading
import time
from collections import defaultdict

PORT = 7420
ANSWER_MAX_S = 3.0


def told(address: str, data: bytes, source: str = "") -> bytes:
    """Everything that is answered, until the other end closes or falls silent."""
    got = b""
    with contextlib.suppress(OSError), socket.socket() as one:
        one.settimeout(ANSWER_MAX_S)
        if source:
            one.bind((source, 0))
        one.connect((address, PORT))
        one.sendall(data)
        while part := one.recv(65536):
            got += part
            if got.rstrip().endswith(b"}"):
                break
    return got


def forged(verb: str, node: str, peer: str, body: bytes = b"{}") -> bytes:
    stamp = {"from": node, "to": peer, "session": "0" * 64, "sequence": "1", "signature": "f" * 64}
    lines = [f"POST /v1/{verb} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"sparkd-{name}: {value}" for name, value in stamp.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def say(addresses: list[str]) -> None:
    said = [
        *(forged(verb, *nodes) for verb in ("hello", "exchange", "ask", "diagnose", "throughput", "run")
          for nodes in (("spark1", "spark2"), ("spark2", "spark1"), ("spark1", "spark1"), ("x", "y"))),
        forged("ask", "spark2", "spark1", b"x" * 100_000),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    ]  # fmt: skip
    answers = set()
    for address in addresses:
        for data in said:
            time.sleep(0.15)  # slower than what a stranger is allowed
            answers.add(told(address, data).decode("latin-1"))
    print(json.dumps(sorted(answers)))


def record(seconds: float) -> None:
    """TCP segments to the link's port, put together in the order of their numbers, cut into requests."""
    flows: dict[bytes, dict[int, bytes]] = defaultdict(dict)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as tap:
        tap.bind(("wire", 0))
        for port in ("p1", "p2"):
            with contextlib.suppress(OSError):
                tap.bind((port, 0))
                break
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            if not select.select([tap], [], [], left_s)[0]:
                break
            frame = tap.recv(65536)[14:]
            if len(frame) < 40 or frame[9] != 6:
                continue
            tcp = frame[4 * (frame[0] & 15) : int.from_bytes(frame[2:4], "big")]
            payload = tcp[4 * (tcp[12] >> 4) :]
            if int.from_bytes(tcp[2:4], "big") == PORT and payload:
                flows[frame[12:20] + tcp[:4]][int.from_bytes(tcp[4:8], "big")] = payload
    requests = []
    for segments in flows.values():
        stream = b"".join(segments[number] for number in sorted(segments))
        requests += [b"POST " + one for one in stream.split(b"POST ")[1:]]
    print(json.dumps([one.hex() for one in requests]))


def repeat(source: str, addresses: list[str]) -> None:
    requests = [bytes.fromhex(one) for one in json.load(sys.stdin)]
    answers = []
    for address in addresses:
        for data in requests:
            time.sleep(0.12)
            answers.append(told(address, data, source).decode("latin-1"))
    print(json.dumps(answers))


def flood(seconds: float, address: str, sources: list[str]) -> None:
    until, made = time.monotonic() + seconds, [0] * len(sources)
    data = forged("exchange", "spark2", "spark1", b"x" * 4000)

    def pour(number: int) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.socket() as one:
                one.settimeout(0.2)
                one.bind((sources[number], 0))
                one.connect((address, PORT))
                made[number] += 1
                one.sendall(data)
                one.recv(100)

    threads = [threading.Thread(target=pour, args=(number,)) for number in range(len(sources))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(sum(made)))


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "say":
        say(words)
    elif verb == "record":
        record(float(words[0]))
    elif verb == "repeat":
        repeat(words[0], words[1:])
    else:
        flood(float(words[0]), words[1], words[2:])
