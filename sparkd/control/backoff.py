"""How long to wait before the next attempt or the next look, and how many attempts there are."""

from __future__ import annotations

import hashlib

from sparkd.model.cluster import Limits

STEP_S = 5.0
LOOK_SHARE = 0.05  # of the time that a node has stood still
LOOK_MAX_S = 15.0


def delay_s(attempt: int, limits: Limits, seed: str) -> float:
    """Seconds before attempt `attempt + 1`, where `attempt` >= 1 attempts have failed.

    The first relaunch follows `backoff_first_s` (at once, by default); later ones double from 5 s up to
    `backoff_max_s`, spread by a jitter of a quarter that depends on `seed` alone, so that a replay is exact.
    """
    if attempt <= 1:
        return limits.backoff_first_s
    base = min(STEP_S * 2.0 ** (attempt - 2), limits.backoff_max_s)
    spread = int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:4], "big") / 2**32
    return min(base * (1 + (spread - 0.5) / 2), limits.backoff_max_s)


def look_s(stood_s: float, least_s: float) -> float:
    """Seconds before the next look at what a person mends or what comes by itself, after so long a standstill: often while
    somebody is at it, seldom in a night in which nobody is. Each look asks Docker, and opens the container's files."""
    return min(max(least_s, LOOK_SHARE * stood_s), LOOK_MAX_S)
