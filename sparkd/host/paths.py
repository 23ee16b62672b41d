"""Where sparkd keeps things on a node. One place, so that a test can put them elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PLAN_MAX_BYTES = 8 << 20  # a plan holds the script of each rank


@dataclass(frozen=True)
class Paths:
    """Directories as systemd makes them for sparkd.service; the same defaults for a command that a person runs."""

    state: Path = Path("/var/lib/sparkd")  # survives a reboot: what was saved, learned durations, events
    runtime: Path = Path("/run/sparkd")  # gone after a reboot: the socket, the engine's launch file
    logs: Path = Path("/var/log/sparkd")  # one engine log per launch
    key: Path = Path("/etc/sparkd/cluster.key")

    @classmethod
    def from_environment(cls) -> Paths:
        """As systemd names them; the cluster key from the credentials directory where it was loaded."""
        env = os.environ.get
        paths = cls(
            state=Path(env("STATE_DIRECTORY", str(cls.state))),
            runtime=Path(env("RUNTIME_DIRECTORY", str(cls.runtime))),
            logs=Path(env("LOGS_DIRECTORY", str(cls.logs))),
        )
        credential = Path(env("CREDENTIALS_DIRECTORY", "/nonexistent")) / "cluster.key"
        # The unit's fallback for a missing file is an empty line: then the file's own path tells what is wrong.
        if credential.is_file() and credential.read_bytes().strip():
            return cls(paths.state, paths.runtime, paths.logs, credential)
        return paths

    @property
    def saved(self) -> Path:
        return self.state / "state.json"

    @property
    def plan(self) -> Path:
        return self.state / "plan.json"

    @property
    def learned(self) -> Path:
        return self.state / "learned.json"

    @property
    def events(self) -> Path:
        return self.state / "events.jsonl"

    @property
    def socket(self) -> Path:
        return self.runtime / "sparkd.sock"

    @property
    def launch_file(self) -> Path:
        return self.runtime / "engine.env"

    @property
    def engine_logs(self) -> Path:
        return self.logs / "engine"

    def engine_log(self, launch_id: str) -> Path:
        return self.engine_logs / f"{launch_id}.log"
