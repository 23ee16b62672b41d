"""Who else would start, restart or stop the engine's container: units, users' units and cron tables, read from their files.

Nothing is asked of systemd here: whether a unit that was found is also active is the caller's question.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path("/")
UNIT_DIRECTORIES = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
USER_UNITS = ("home/*/.config/systemd/user", "root/.config/systemd/user", "etc/systemd/user")
CRON_FILES = ("etc/crontab", "etc/cron.d/*", "var/spool/cron/crontabs/*", "etc/rc.local")
FILE_MAX_BYTES = 64 * 1024  # longer ones are no unit and no launch script

_SETTING = re.compile(r"^\s*(Exec(?:Start|StartPre|StartPost|Reload))\s*=\s*(.*)$")
_SERVE = re.compile(r"\bvllm\s+serve\b|\bvllm\.entrypoints\.")
_HOMES = ("/home/", "/root/", "/opt/", "/srv/", "/usr/local/")  # where people keep their own scripts


@dataclass(frozen=True)
class Starter:
    """A place from which something starts the engine or drives its container."""

    kind: Literal["unit", "user unit", "cron"]
    name: str  # of the unit; of the file for cron
    path: Path
    line: str  # the command that does it
    enabled: bool = True  # for a user's unit: it is started with his session; systemd tells it of the others


def drives(command: str, container: str) -> bool:
    """Pure. Whether a command line runs vLLM, or starts, stops or replaces `container`; one that only looks does not."""
    if _SERVE.search(command):
        return True
    name = rf"(?<![\w.-]){re.escape(container)}(?![\w.-])"
    if re.search(rf"\b(?:docker|podman)\b.*\b(?:start|restart|run|create|rm|stop|kill|up)\b.*{name}", command):
        return True
    return bool(re.search(rf"\b(?:docker|podman)\b.*\bexec\b.*{name}\s+.*(?:\.sh\b|\bpkill\b)", command))


def starters(container: str, root: Path = ROOT) -> list[Starter]:
    """Everything on this host that drives the container or runs vLLM by itself, sparkd's own units among it."""
    found: dict[tuple[str, str], Starter] = {}
    for one in (*_units(container, root), *_user_units(container, root), *_cron(container, root)):
        found.setdefault((one.kind, one.name), one)
    return list(found.values())


def _units(container: str, root: Path) -> Iterator[Starter]:
    for directory in UNIT_DIRECTORIES:
        base = root / directory
        if base.is_symlink() or base.parent.parent.is_symlink():
            continue  # /lib is /usr/lib on a merged system: read it once
        for path in (*sorted(base.glob("*.service")), *sorted(base.glob("*.service.d/*.conf"))):
            line = _driving_line(path, container, root)
            if line:
                name = path.name if path.suffix == ".service" else path.parent.name.removesuffix(".d")
                yield Starter("unit", name, path, line)


def _user_units(container: str, root: Path) -> Iterator[Starter]:
    for pattern in USER_UNITS:
        for path in sorted(root.glob(f"{pattern}/*.service")):
            line = _driving_line(path, container, root)
            if line:
                wanted = any(path.parent.glob(f"*.wants/{path.name}"))
                yield Starter("user unit", path.name, path, line, enabled=wanted)


def _cron(container: str, root: Path) -> Iterator[Starter]:
    for pattern in CRON_FILES:
        for path in sorted(root.glob(pattern)):
            for line in _lines(path):
                if not line.lstrip().startswith("#") and drives(line, container):
                    yield Starter("cron", str(path), path, line.strip())
                    break


def _driving_line(path: Path, container: str, root: Path) -> str | None:
    """The first command of a unit file that drives the container, itself or in the script that it runs."""
    for line in _lines(path):
        setting = _SETTING.match(line)
        if setting is None:
            continue
        command = setting.group(2).strip()
        if drives(command, container) or _script_drives(command, container, root):
            return f"{setting.group(1)}={command}"
    return None


def _script_drives(command: str, container: str, root: Path) -> bool:
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    for word in words:
        path = word.lstrip("-@:+!")
        if path.startswith(_HOMES) and any(
            not line.lstrip().startswith("#") and drives(line, container) for line in _lines(root / path.lstrip("/"))
        ):
            return True
    return False


def _lines(path: Path) -> list[str]:
    """Lines of a small text file, with those that end in a backslash joined to their next. Empty for anything else."""
    try:
        if not path.is_file() or path.stat().st_size > FILE_MAX_BYTES:
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [] if "\0" in text else re.sub(r"\s*\\\n\s*", " ", text).splitlines()
