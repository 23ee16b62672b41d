"""A source that meets a fault begins anew; one that is cancelled ends."""

from __future__ import annotations

import asyncio
import errno

import pytest

from sparkd.agent.tasks import fault_teller, unfailing


def test_a_fault_is_survived_and_an_end_is_an_end() -> None:
    begun = 0

    async def source() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise RuntimeError("once")

    asyncio.run(asyncio.wait_for(unfailing("a source", source), 10))
    assert begun == 2


def test_cancelling_ends_it() -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(unfailing("a source", lambda: asyncio.sleep(60)))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_want_is_told_once_a_second_and_a_fault_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def faults() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(fault_teller())
        for _ in range(100):
            want = OSError(errno.EMFILE, "Too many open files")
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": want})
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.01)

    asyncio.run(faults())
    want, fault = caplog.records
    assert want.getMessage() == "socket.accept() out of system resource: [Errno 24] Too many open files" and not want.exc_info
    assert fault.exc_info is not None and fault.exc_info[0] is ZeroDivisionError
