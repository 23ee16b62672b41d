"""A source that meets a fault begins anew; one that is cancelled ends."""

from __future__ import annotations

import asyncio

import pytest

from sparkd.agent.tasks import unfailing


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
