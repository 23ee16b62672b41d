"""Does systemd-logind take a user's shared memory away when his last session ends? (RemoveIPC=, logind.conf(5))"""

from __future__ import annotations

import pwd
import re
from pathlib import Path

ROOT = Path("/")
CONFIGURATION = ("etc/systemd/logind.conf",)
DROP_INS = ("usr/lib/systemd/logind.conf.d", "run/systemd/logind.conf.d", "etc/systemd/logind.conf.d")
LINGERING = "var/lib/systemd/linger"
SYSTEM_UID_MAX = 999  # logind spares system users

_SETTING = re.compile(r"^\s*RemoveIPC\s*=\s*(\S+)", re.MULTILINE | re.IGNORECASE)


def removes_ipc(root: Path = ROOT) -> bool:
    """As logind reads it: the last setting wins, drop-ins over the file, and by default it does remove."""
    answer = "yes"
    files = [root / name for name in CONFIGURATION]
    named = {path.name: path for directory in DROP_INS for path in (root / directory).glob("*.conf")}
    for path in [*files, *(named[name] for name in sorted(named))]:
        try:
            found = _SETTING.findall(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        answer = found[-1] if found else answer
    return answer.lower() in ("yes", "true", "on", "1")


def lingers(user: str, root: Path = ROOT) -> bool:
    """Whether the user's manager, and with it his shared memory, outlives his sessions."""
    return (root / LINGERING / user).exists()


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
