"""This node as commands see it: with a daemon, without, and what only daemons can measure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_daemon import CHECKOUT, SERVING, Daemon, Home

from sparkd.cli.here import configured_here, facts_here
from sparkd.model.errors import SparkdError, UsageError

CONFIG = CHECKOUT / "config/sparkd.yaml"


class Measuring(Daemon):
    def verbs(self) -> dict[str, Any]:
        return {**super().verbs(), "throughput": self._throughput}

    async def _throughput(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(request)
        if request["seconds"] > 5:
            raise UsageError("a measurement takes 1 to 5 seconds")
        yield {"node": request["node"], "gbps": 12.7, "seconds": 1.0, "streams": 8}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path)
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    return home


def test_the_daemons_measure_the_link_to_each_other_node(home: Home) -> None:
    measuring = Measuring([SERVING])
    with home.daemon(measuring):
        facts = facts_here(CONFIG, "spark1")
        assert facts.throughput is not None
        assert facts.throughput(1.0) == {"spark2": 12.7}
        with pytest.raises(SparkdError, match="1 to 5 seconds"):
            facts.throughput(60.0)
    assert measuring.asked[0] == {"verb": "throughput", "node": "spark2", "seconds": 1.0}


def test_without_a_daemon_there_is_nobody_who_could_measure(home: Home) -> None:
    facts = facts_here(CONFIG, "spark2")
    assert facts.status is None and facts.throughput is None and facts.without_daemon
    assert facts.plan.node == "spark2"


def test_who_needs_a_configuration_is_told_what_is_wrong_with_it(home: Home) -> None:
    assert configured_here(CONFIG, "spark2").plan.rank == 1
    with pytest.raises(SparkdError, match="none"):
        configured_here(home.directory / "none.yaml", None)
    assert facts_here(home.directory / "none.yaml", None).config_error is not None
