"""What the fuzz tests share: a budget, real inputs, and how they are broken.

SPARKD_FUZZ_SECONDS=600 makes each of them run for so long, with other random numbers each time (the seed is printed when
one fails). Without it they run a fixed number of examples with a fixed seed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

DATA = Path(__file__).parent.parent / "data"
ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("SPARKD_FUZZ_SECONDS", "0"))

ODD = (
    b"",
    b"\0",
    b"\x1b[31m",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\r\n",
    b"\t",
    b"'",
    b'"',
    b"\\",
    b"$(id)",
    b"`id`",
    b"../../etc/passwd",
    b"%s%n",
    b"-1",
    b"0",
    b"1" * 40,
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b"{}",
    b"[",
    b"[" * 3000,
    b'{"a":' * 300,
    b"\\ud800",
    b"\\u0000",
    b"\xc3\xa9",
    b"\xe2\x80\xa8",
    b" " * 500,
    b": ",
    b"- ",
    b"&a",
    b"*a",
    b"<<: *a",
    b"!!python/object:os.system",
    b"sk-abcdefghijklmnop",
    b"api_key=",
    b"---",
)


def runs(count: int) -> Iterator[random.Random]:
    """A source of chance for each run: `count` of them, or as many as fit into SPARKD_FUZZ_SECONDS."""
    base = 0 if not SECONDS else random.SystemRandom().randrange(1 << 40)
    until, number = time.monotonic() + SECONDS, 0
    while number < count or time.monotonic() < until:
        seed = base + number
        try:
            yield random.Random(seed)
        except GeneratorExit:  # the test failed with this one
            print(f"\nseed {seed}")
            raise
        number += 1


def examples(count: int) -> int:
    """For hypothesis: roughly as long as SPARKD_FUZZ_SECONDS says, at some 300 examples a second."""
    return max(count, int(SECONDS * 300))


def broken(data: bytes, chance: random.Random, others: Sequence[bytes] = ODD) -> bytes:
    """`data` with some of it changed, as a fault or an enemy would."""
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.choice((0, 1, 1, 4, 40)))
        match chance.randrange(6):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + data[to:]
            case 2:
                data = data[:at] + bytes(chance.randrange(256) for _ in range(to - at)) + data[to:]
            case 3:
                data = data[:at] + data[at:to] * 3 + data[to:]
            case _:
                data = data[:at] + chance.choice(others) + data[to:]
    return data


def grows(work: Callable[[int], object], small: int, factor: int = 4) -> float:
    """How many times longer `factor` times as much takes, in this process's own time: the best of three, one beside the other."""
    return min(_took(work, small * factor) / max(_took(work, small), 1e-6) for _ in range(3))


def _took(work: Callable[[int], object], size: int) -> float:
    began = time.thread_time()
    work(size)
    return time.thread_time() - began


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
