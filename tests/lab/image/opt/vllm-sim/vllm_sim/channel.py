"""Messages over a stream socket: one JSON value a line. Between the processes of a node, and between the ranks."""

import json
import socket
import threading
from typing import Any


class Closed(Exception):
    """The other end is gone."""


class Channel:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""
        self._lock = threading.Lock()

    @classmethod
    def pair(cls) -> "tuple[Channel, Channel]":
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, message: Any) -> None:
        """Raises Closed."""
        try:
            with self._lock:
                self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as exc:
            raise Closed(str(exc)) from exc

    def waiting(self) -> bool:
        """Whether a whole message was read already: select() would not see it."""
        return b"\n" in self._buffer

    def receive(self) -> Any:
        """The next message, however long it takes. Raises Closed."""
        while not self.waiting():
            try:
                data = self.sock.recv(65536)
            except OSError as exc:
                raise Closed(str(exc)) from exc
            if not data:
                raise Closed("end of stream")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)
