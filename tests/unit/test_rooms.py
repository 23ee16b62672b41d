"""The rooms of the house (DESIGN.md section 3): imports point down only, and decisions see nothing of the world."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparkd

PACKAGE = Path(sparkd.__file__).parent

# What each room may import. Everybody may import model, and a room itself.
MAY_IMPORT = {
    "model": set(),
    "control": set(),
    "host": set(),
    "engine": {"host"},
    "peer": {"host"},
    "config": set(),
    "doctor": {"host", "engine", "peer", "config"},
    "agent": {"control", "doctor", "host", "engine", "peer", "config"},
    "cli": {"agent", "doctor", "config", "host", "engine", "peer"},
}

# A file that decides must not be able to look, wait or act: not even by the standard library.
WORLDLY = {"asyncio", "datetime", "io", "logging", "os", "pathlib", "random", "select", "signal", "socket", "subprocess",
           "sys", "threading", "time", "docker", "httpx", "psutil", "pystemd", "sdnotify", "yaml"}  # fmt: skip


def modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_known() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room: str) -> None:
    allowed = {room, "model", *MAY_IMPORT[room]}
    for path in modules(room):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "sparkd" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                assert parts[1] in allowed, f"{path.relative_to(PACKAGE)} imports {name}: {room} may not see {parts[1]}"


@pytest.mark.parametrize("room", ["model", "control"])
def test_what_decides_sees_nothing_of_the_world(room: str) -> None:
    for path in modules(room):
        worldly = {name.split(".")[0] for name in imported(path)} & WORLDLY
        assert not worldly, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(worldly))}"
