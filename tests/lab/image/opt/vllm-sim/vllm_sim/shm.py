"""/dev/shm as vLLM leaves it: `psm_<8 hex>` ring buffers and `sem.mp-<8>` semaphores.

Made by Python's own multiprocessing, like the real ones, so that the resource tracker (a process of its own) cleans up
what is left when the last process of the launch ends, unless it was killed with them.
"""

import _multiprocessing  # type: ignore[import-not-found]
import contextlib
import secrets
from multiprocessing import resource_tracker, shared_memory

RING_BYTES = 25 * 1024 * 1024  # sparse: only a page of it is ever touched


def start_tracker() -> None:
    """Starts the resource tracker. To be called by the top process before it forks: all share one."""
    resource_tracker.ensure_running()


class Semaphore:
    """What multiprocessing.Lock() of a spawning program is made of: the file `/dev/shm/sem.mp-<8>`, 32 bytes."""

    def __init__(self, tracked: bool) -> None:
        """One that is not tracked outlives a crash; the real engine leaves one of that kind."""
        self.name = f"/mp-{secrets.token_hex(4)}"
        self.tracked = tracked
        self._lock = _multiprocessing.SemLock(1, 1, 1, self.name, False)
        if tracked:
            resource_tracker.register(self.name, "semaphore")

    def unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            _multiprocessing.sem_unlink(self.name)
        if self.tracked:
            resource_tracker.unregister(self.name, "semaphore")


class Segments:
    """The shared memory that one process made. Its children inherit the mappings."""

    def __init__(self, rings: int, semaphores: int = 0, untracked_semaphores: int = 0) -> None:
        self._rings = [shared_memory.SharedMemory(create=True, size=RING_BYTES) for _ in range(rings)]
        for ring in self._rings:
            if ring.buf is not None:
                ring.buf[:16] = b"simulated vLLM\0\0"
        self._semaphores = [Semaphore(tracked=True) for _ in range(semaphores)]
        self._semaphores += [Semaphore(tracked=False) for _ in range(untracked_semaphores)]

    def unlink(self) -> None:
        """What an orderly stop does. A crash leaves it to the tracker."""
        for ring in self._rings:
            with contextlib.suppress(FileNotFoundError):
                ring.unlink()
        for semaphore in self._semaphores:
            semaphore.unlink()
        self._rings, self._semaphores = [], []
