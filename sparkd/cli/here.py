"""This node as a command sees it: its configuration, its daemon's word, and the doors to look through."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkd.agent.local import DeniedError
from sparkd.cli import daemon
from sparkd.model.errors import SparkdError
from sparkd.model.outside import parsed

if TYPE_CHECKING:
    from sparkd.doctor.facts import Facts
    from sparkd.host.paths import Paths

DOCKER_MAX_S = 1.5  # two that stand in line for one that hangs still get their answer before the doctor's time is up
PATIENT_MAX_S = 10.0  # of Docker, where one person waits for one answer
SYSTEMD_MAX = "2s"  # its library waits without letting other threads run
MEASURE_MORE_S = 6.0  # than the measurement itself: the daemons' own limits for connecting and telling
STATUS_MAX_S = 1.0  # a daemon that turns answers in milliseconds


def facts_here(config_path: Path, node: str | None) -> Facts:
    """Everything that can be had; what cannot (no daemon, no configuration) is said in it. Raises nothing."""
    status: dict[str, Any] = {}
    asking = threading.Thread(target=_ask_status, args=(status,), daemon=True)
    asking.start()  # the imports below take longer than the daemon's answer

    from sparkd.doctor.facts import Facts
    from sparkd.engine.container import Docker
    from sparkd.host.paths import Paths

    os.environ.setdefault("SYSTEMD_BUS_TIMEOUT", SYSTEMD_MAX)
    asking.join(STATUS_MAX_S + 0.2)
    facts = Facts(docker=Docker(timeout_s=DOCKER_MAX_S), paths=Paths.from_environment())
    facts.status = status.get("answer")
    facts.without_daemon = "" if facts.status is not None else str(status.get("error", "it did not answer in time"))
    facts.is_denied = bool(status.get("denied"))
    try:
        _configure(facts, config_path, node)
    except SparkdError as error:
        facts.config_error = error
    if facts.status is not None and facts.settings is not None and facts.rank is not None:
        others = [each.name for rank, each in enumerate(facts.settings.cluster.nodes) if rank != facts.rank]
        facts.throughput = lambda seconds: _measured(others, seconds)
    return facts


def configured_here(config_path: Path, node: str | None) -> Facts:
    """This node by its configuration, for a command that cannot do without one. Raises SparkdError."""
    from sparkd.doctor.facts import Facts
    from sparkd.engine.container import Docker
    from sparkd.host.paths import Paths

    facts = Facts(docker=Docker(timeout_s=PATIENT_MAX_S), paths=Paths.from_environment())
    _configure(facts, config_path, node)
    return facts


def _ask_status(told: dict[str, Any]) -> None:
    try:
        told["answer"] = daemon.ask("status", timeout_s=STATUS_MAX_S)
    except (SparkdError, OSError) as error:
        told["error"], told["denied"] = str(error), isinstance(error, DeniedError)


def _measured(others: Sequence[str], seconds: float) -> dict[str, float]:
    """Gigabits a second that each other node sends to this one, one after the other. Raises SparkdError."""
    answers = {
        name: daemon.ask("throughput", timeout_s=seconds + MEASURE_MORE_S, node=name, seconds=seconds)
        for name in others
    }
    return {name: float(answer["gbps"]) for name, answer in answers.items()}


def _configure(facts: Facts, config_path: Path, node: str | None) -> None:
    """Settings first: who this node is may be unclear while they are fine."""
    from sparkd.config.identity import identify_here
    from sparkd.config.load import load, plan_for

    configuration = load(config_path)
    facts.settings = configuration.settings
    profile = facts.status.get("profile") if facts.status is not None else _saved_profile(facts.paths)
    known = profile if profile in configuration.profiles else None
    cluster = configuration.settings.cluster
    facts.rank = cluster.nodes.index(identify_here(cluster, node))
    facts.cluster_plan = plan_for(configuration, known)


def _saved_profile(paths: Paths) -> str | None:
    """The profile that an operator asked for, as the daemon keeps it. None: the configured one."""
    from sparkd.host.files import whole

    try:
        saved = parsed(whole(paths.saved))
    except (OSError, ValueError):
        return None
    profile = saved.get("profile") if isinstance(saved, dict) else None
    return profile if isinstance(profile, str) else None
