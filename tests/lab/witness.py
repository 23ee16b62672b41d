"""Looks at both nodes every second while things break, and remembers what must never be seen.

By processes, files and answers, not by what sparkd says of itself; what it does say is held against those.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from typing import Any

from .beside import running
from .host import LabError
from .pair import ENDPOINT, NODES, Pair

EVERY_S = 1.0
HEAD, WORKER = NODES
STARTS_TOLERANCE_S = 0.1  # of two nodes' clocks: start times come in hundredths
FRESH_PROOF_S = 30.0

LOOK = r"""
import glob, json, os, socket, time

def text(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")

now, uptime = time.time(), float(text("/proc/uptime").split()[0])

def engine(directory):
    words = text(f"{directory}/stat").rpartition(")")[2].split()
    if words[0] in "ZX" or os.stat(directory).st_uid != 0:
        return None
    argv = text(f"{directory}/cmdline").split("\0")
    title = argv[0] if argv[0].startswith("VLLM::") else "top" if "serve" in argv[:4] and "vllm" in " ".join(argv[:3]) else ""
    launch = [line[18:] for line in text(f"{directory}/environ").split("\0") if line.startswith("SPARKD_LAUNCH_ID=")]
    if not title and not launch:
        return None
    started = now - uptime + int(words[19]) / os.sysconf("SC_CLK_TCK")
    return [int(directory[6:]), title, launch[0] if launch else None, started]

def engines():
    found = []
    for directory in glob.glob("/proc/[0-9]*"):
        try:
            one = engine(directory)
        except (OSError, IndexError):
            continue
        if one:
            found.append(one)
    return found

def status():
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(3)
            s.connect("/run/sparkd/sparkd.sock")
            s.sendall(b'{"verb": "status"}\n')
            with s.makefile() as lines:
                return json.loads(lines.readline())
    except (OSError, ValueError):
        return {}

def daemon():
    for directory in glob.glob("/proc/[0-9]*"):
        try:
            if text(f"{directory}/cmdline").endswith("sparkd\0run\0"):
                return directory[6:] + "-" + text(f"{directory}/stat").rpartition(")")[2].split()[19]
        except OSError:
            continue

told = status()
kept = ("phase", "serving", "epoch", "reason", "proof_age_s", "run", "blocked", "launch_id")
print(json.dumps({"at": now, "boot": text("/proc/sys/kernel/random/boot_id").strip(), "engines": engines(),
                  "daemon": daemon(), "status": {key: told.get(key) for key in kept} if told else {}}))
"""

Look = dict[str, Any]


class Witness:
    """`complaints` are broken promises, each told once."""

    def __init__(self, pair: Pair, *, claim_max_s: float) -> None:
        self._pair, self._claim_max_s = pair, claim_max_s
        self.complaints: list[str] = []
        self.looks = 0
        self.last: dict[str, Look] = {}
        self.lives: dict[str, dict[str, set[str]]] = {node: defaultdict(set) for node in NODES}  # boot -> daemons seen
        self._over, self._adding = threading.Event(), threading.Lock()
        self._tops: dict[str, dict[str, float]] = {node: {} for node in NODES}  # epoch -> its top process's start

    def watching(self) -> AbstractContextManager[None]:
        works = [*(functools.partial(self._watch, node) for node in NODES), self._ask]
        return running(works, self._over, join_max_s=60)

    def complain(self, says: str) -> None:
        with self._adding:
            if says not in self.complaints:
                self.complaints.append(says)

    # --- processes ---

    def _watch(self, node: str) -> None:
        while not self._over.is_set():
            with contextlib.suppress(LabError, ValueError):  # off, or booting
                done = self._pair.lab.node(node).run(["/usr/bin/python3", "-IS", "-c", LOOK], timeout_s=20)
                self._judge(node, json.loads(done.stdout))
            self._over.wait(EVERY_S)

    def _judge(self, node: str, look: Look) -> None:
        self.looks += 1
        self.last[node] = look
        if look["daemon"]:
            self.lives[node][look["boot"]].add(look["daemon"])
        launches = sorted({launch for _, _, launch, _ in look["engines"] if launch})
        if len(launches) > 1:
            told = ", ".join(f"{pid} {title} {launch}" for pid, title, launch, _ in sorted(look["engines"]))
            self.complain(f"{node}: more than one launch lives here: {told}")
        for _, title, launch, started in look["engines"]:
            if title == "top" and launch:
                epoch = launch.rpartition("-")[2]
                self._tops[node][epoch] = started
        for epoch, started in self._tops[HEAD].items():
            worker = self._tops[WORKER].get(epoch)
            if worker is not None and worker > started + STARTS_TOLERANCE_S:
                self.complain(f"epoch {epoch}: the head's engine started {worker - started:.1f} s before the worker's")

    # --- answers ---

    def _ask(self) -> None:
        """A claim to serve that no request bears out, for longer than it takes to notice by itself."""
        since: float | None = None
        claimed = 0
        while not self._over.wait(2.0):
            epoch = self._claims()
            if epoch is None:
                since = None
                continue
            if self.answers():
                since = None
            elif self._claims() == epoch:
                since, claimed = (
                    (since, claimed) if since is not None and claimed == epoch else (time.monotonic(), epoch)
                )
                if time.monotonic() - since > self._claim_max_s:
                    self.complain(
                        f"epoch {epoch} was said to serve for {self._claim_max_s:.0f} s and answered no request"
                    )

    def _claims(self) -> int | None:
        """The epoch that the head says to serve just now, with a fresh proof."""
        look = self.last.get(HEAD)
        if look is None or time.time() - look["at"] > 3 * EVERY_S or not look["status"].get("serving"):
            return None
        age_s = look["status"].get("proof_age_s")
        return int(look["status"]["epoch"]) if age_s is not None and age_s < FRESH_PROOF_S else None

    def answers(self) -> bool:
        """A client on the head itself: a cable that is out of the LAN is not the engine's fault."""
        body = {"model": self._pair.model, "max_tokens": 32, "messages": [{"role": "user", "content": "Say hello."}]}
        argv = ["curl", "-sS", "-m", "30", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
        try:
            done = self._pair.lab.node(HEAD).run([*argv, f"{ENDPOINT}/v1/chat/completions"], timeout_s=40, check=False)
            message = json.loads(done.stdout)["choices"][0]["message"]
        except (LabError, ValueError, KeyError, TypeError, IndexError):
            return False
        return any(message.get(field) for field in ("content", "reasoning", "reasoning_content"))
