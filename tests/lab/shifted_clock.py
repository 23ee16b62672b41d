"""Another time of day for sparkd of one node: a library that is loaded before libc, and the file that it reads."""

from __future__ import annotations

import base64
import tempfile
import time
from pathlib import Path

from .host import LabError, run
from .machine import Node

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "/usr/local/lib/sparkd-lab/shifted_clock.so"
OFFSET_FILE = "/var/lib/sparkd-lab/clock_offset_s"
DROP_IN = "/etc/systemd/system/sparkd.service.d/lab-shifted-clock.conf"
RESTARTED_MAX_S = 30


def shift(node: Node, offset_s: int) -> None:
    """sparkd of the node, and all that it starts, has it so much later (earlier: negative) from now on.

    Its clock steps while it runs: the daemon is only restarted where it was started without the library.
    """
    if not _is_loaded(node):
        _install(node)
    node.write(OFFSET_FILE, f"{offset_s}\n")


def put_right(node: Node) -> None:
    """The clock steps back to what it was; the next start of the daemon is one without the library."""
    node.run(f"rm -f {OFFSET_FILE} {DROP_IN} && systemctl daemon-reload")


def _is_loaded(node: Node) -> bool:
    pid = node.run("systemctl show -p MainPID --value sparkd").stdout.strip()
    return node.run(f"grep -qs {LIBRARY} /proc/{pid}/maps", check=False).returncode == 0


def _install(node: Node) -> None:
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "clock.so"
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", f'-DOFFSET_FILE="{OFFSET_FILE}"']
        run(["gcc", *flags, "-o", library, SOURCE], timeout_s=60)
        packed = base64.b64encode(library.read_bytes()).decode()
    # Another file, not other content: the one of before may be mapped.
    node.run(f"mkdir -p {Path(LIBRARY).parent}; base64 -d >{LIBRARY}.new && mv {LIBRARY}.new {LIBRARY}", input=packed)
    node.write(DROP_IN, f"[Service]\nEnvironment=LD_PRELOAD={LIBRARY}\n")
    node.run("systemctl daemon-reload; ! systemctl is-active -q sparkd || systemctl restart sparkd")
    deadline = time.monotonic() + RESTARTED_MAX_S
    while not _is_loaded(node):
        if time.monotonic() > deadline:
            raise LabError(f"{node.name}: sparkd does not load {LIBRARY}")
        time.sleep(0.2)
