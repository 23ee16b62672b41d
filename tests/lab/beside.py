"""Work that goes on in threads beside a test, and ends with it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator


@contextlib.contextmanager
def running(works: Iterable[Callable[[], None]], over: threading.Event, *, join_max_s: float) -> Iterator[None]:
    """Each in a thread of its own, until the block ends: then `over` is set, which each of them has to look at."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=join_max_s)
