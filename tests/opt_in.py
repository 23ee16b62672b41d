"""Tests that run only for who asks for them: left out otherwise, and said so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def leave_out(config: pytest.Config, items: list[pytest.Item], unwanted: list[pytest.Item], why: str) -> None:
    """Nobody asked for them, which is no failure under CI as a test that cannot run would be."""
    if not unwanted:
        return
    items[:] = [item for item in items if item not in unwanted]
    config.hook.pytest_deselected(items=unwanted)
    if told := os.environ.get("SPARKD_TEST_NOT_RUN"):  # scripts/test gathers them over its parts
        with Path(told).open("a", encoding="utf-8") as file:
            file.write(f"{why}\n")
    else:
        config.stash.setdefault(LEFT_OUT, []).append(why)


LEFT_OUT = pytest.StashKey[list[str]]()
