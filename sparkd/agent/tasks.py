"""Tasks that must not end by themselves, and faults that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from sparkd.host import procfs

log = logging.getLogger(__name__)

AGAIN_S = 1.0
WANT_SAID_S = 1.0


async def unfailing(what: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a source until it returns. A fault in it is logged and it begins anew: a daemon that has quietly stopped to
    look is worse than one that died."""
    while True:
        try:
            await begin()
            return
        except Exception as error:
            if is_want(error):
                log.warning("%s: %s; it begins anew", what, error)
            else:
                log.exception("%s met a fault that nobody foresaw; it begins anew", what)
            await asyncio.sleep(AGAIN_S)


def is_want(error: BaseException | None) -> bool:
    """The daemon has no descriptor or memory left: no fault of whoever met it (agent/fresh_start.py)."""
    return isinstance(error, OSError) and procfs.ours(error)


def fault_teller() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """How asyncio tells of a fault in a callback. In want it meets the same one a hundred times a second, for each connection
    that may wait to be accepted: a line a second is enough, and no trace."""
    quiet_until = 0.0

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal quiet_until
        if not is_want(context.get("exception")):
            loop.default_exception_handler(context)
        elif loop.time() >= quiet_until:
            quiet_until = loop.time() + WANT_SAID_S
            log.warning("%s: %s", context["message"], context["exception"])

    return tell
