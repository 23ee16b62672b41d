"""vLLM's log format: `({process} pid={pid}) {LEVEL} {MM-DD HH:MM:SS} [{file}:{line}] {message}` on stdout.

No prefix on progress bars, uvicorn's lines, torch's c10d lines and final tracebacks. Each write is one system call, so that
the lines of several processes on one pipe stay whole.
"""

import os
import sys
import time
from collections.abc import Iterable

Frame = tuple[str, int, str, str]  # file below site-packages, line, function, source line

SITE_PACKAGES = "/usr/local/lib/python3.12/dist-packages"

_process = "APIServer"


def set_process(name: str) -> None:
    """Names this process in every later line: APIServer, EngineCore, VllmWorker-N, Worker_TP0, MainProcess."""
    global _process
    _process = name


def write(descriptor: int, text: str) -> None:
    data = text.encode()
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        pass  # whoever read our output is gone; an orphan lives on without


def _emit(level: str, where: str, message: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    prefix = f"({_process} pid={os.getpid()}) {level} {stamp} [{where}] "
    write(1, "".join(f"{prefix}{line}\n" for line in message.split("\n")))


def info(where: str, message: str) -> None:
    _emit("INFO", where, message)


def warning(where: str, message: str) -> None:
    _emit("WARNING", where, message)


def error(where: str, message: str) -> None:
    _emit("ERROR", where, message)


def plain(line: str) -> None:
    """A line without prefix, as uvicorn's are."""
    write(1, line + "\n")


def c10d(level: str, source: str, message: str) -> None:
    """A line of torch's C++ side: `[W1121 08:30:21.248 socket.cpp:207] [c10d] ...`."""
    now = time.time()
    stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now))
    write(2, f"[{level}{stamp}.{int(now % 1 * 1e9):09d} {source}] [c10d] {message}\n")


def trace(frames: Iterable[Frame], last_line: str) -> str:
    """A traceback as Python prints it, from recorded frames."""
    lines = ["Traceback (most recent call last):"]
    for file, number, function, source in frames:
        path = file if file.startswith(("/", "<")) else f"{SITE_PACKAGES}/{file}"
        lines += [f'  File "{path}", line {number}, in {function}', f"    {source}"]
    return "\n".join([*lines, last_line])


class Bar:
    """A tqdm progress bar: redrawn by carriage returns, one newline at its end, on stderr."""

    def __init__(self, head: str, total: int, tail: str = "") -> None:
        self._head, self._tail, self._total = head, tail, total
        self._started = time.monotonic()
        self.show(0)

    def show(self, done: int) -> None:
        elapsed = time.monotonic() - self._started
        percent = round(100 * done / self._total)
        if done == 0:
            timing = "00:00<?, ?it/s"
        else:
            left = elapsed / done * (self._total - done)
            rate = f"{done / elapsed:5.2f}it/s" if elapsed < done else f"{elapsed / done:5.2f}s/it"
            timing = f"{_clock(elapsed)}<{_clock(left)}, {rate}"
        write(2, f"\r{self._head}: {percent:3d}%{self._gauge(percent)} {done}/{self._total} [{timing}]")

    def _gauge(self, percent: int) -> str:
        return self._tail if self._tail else f"|{'█' * (percent // 10):<10}|"

    def close(self) -> None:
        write(2, "\n")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
