"""Tasks that must not end by themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

AGAIN_S = 1.0


async def unfailing(what: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a source until it returns. A fault in it is logged and it begins anew: a daemon that has quietly stopped to
    look is worse than one that died."""
    while True:
        try:
            await begin()
            return
        except Exception:
            log.exception("%s met a fault that nobody foresaw; it begins anew", what)
            await asyncio.sleep(AGAIN_S)
