"""What the exchange must not bring into the daemon: each of these is memory on a node that has none to spare."""

from __future__ import annotations

import subprocess
import sys


def test_no_other_servers_and_loops_are_imported() -> None:
    code = "import sys, sparkd.peer.client, sparkd.peer.server; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    unwanted = {"uvloop", "httptools", "websockets", "wsproto", "h2", "trio", "jinja2", "multipart", "docker"}
    assert not unwanted & set(done.stdout.split())
