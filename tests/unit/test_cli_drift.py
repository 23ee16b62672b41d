"""`sparkd drift` and `sparkd baseline`, as commands, against a daemon's real socket and files on disk."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_daemon import SERVING, Daemon, Home
from click.testing import CliRunner, Result

from sparkd.cli import drift as command
from sparkd.cli.baseline import baseline
from sparkd.cli.drift import drift
from sparkd.doctor import baselines
from sparkd.host.paths import Paths
from sparkd.model.diagnosis import BaselineName, Boundary, Change, Diagnosis

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "log")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The shipped configuration, where a test may change it."""
    for part in ("recipes/deepseek-v4-flash.yaml", "recipes/gpt-oss-20b.yaml", "sparkd.yaml"):
        file = tmp_path / "etc" / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((CHECKOUT / "config" / part).read_text())
    folder = tmp_path / "etc/profiles/deepseek-v4-flash"
    folder.mkdir(parents=True)
    for profile in (CHECKOUT / "config/profiles/deepseek-v4-flash").iterdir():
        (folder / profile.name).write_text(profile.read_text())
    return tmp_path / "etc/sparkd.yaml"


def run(home: Home, of: Any, *arguments: str, config: Path) -> Result:
    options = ["--config", str(config), "--node", "spark1"]
    return CliRunner(env=home.environment).invoke(of, [*arguments, *options], standalone_mode=False)


def test_before_the_first_baseline_nobody_can_tell_and_it_says_when_one_comes(home: Home, config: Path) -> None:
    found = run(home, drift, "--no-peer", config=config)
    assert found.return_value == 3 and "one is written when a launch has served for 5 min 0 s" in found.output
    with pytest.raises(Exception, match="there is no baseline yet"):
        raise run(home, drift, "--list", config=config).exception or AssertionError("no error")


def test_a_baseline_and_then_what_changed(home: Home, config: Path, paths: Paths) -> None:
    written = run(home, baseline, "--epoch", "18", config=config)
    assert written.exit_code == 0 and written.output.startswith("epoch-18-")
    (name,) = baselines.all(paths)
    nothing = run(home, drift, "--no-peer", config=config)
    assert nothing.return_value == 0 and f"nothing changed since {name.name}" in nothing.output

    recipe = config.parent / "recipes/deepseek-v4-flash.yaml"
    recipe.write_text(recipe.read_text().replace('OMP_NUM_THREADS: "8"', 'OMP_NUM_THREADS: "1"\n  NCCL_PROTO: Simple'))
    changed = run(home, drift, "--no-peer", config=config)
    lines = [line.strip() for line in changed.output.splitlines()]
    assert changed.return_value == 1
    assert lines.index("94  NCCL_PROTO=Simple is new in the plan's environment") < lines.index(
        "85  OMP_NUM_THREADS in the plan's environment was 8, is 1"
    )
    told = json.loads(run(home, drift, "--no-peer", "--json", config=config).output)
    assert told["nodes"][0]["baseline"] == name.name
    assert told["nodes"][0]["changes"][0]["name"] == "NCCL_PROTO" and told["absent"] == {}

    listed = run(home, drift, "--list", config=config)
    assert listed.return_value == 0 and name.name in listed.output
    named = run(home, drift, "--no-peer", "--baseline", name.name, config=config)
    assert named.return_value == 1 and name.name in named.output


def test_what_was_launched_is_what_has_proven_itself(home: Home, config: Path, paths: Paths) -> None:
    from sparkd.config.load import load, plan_for

    launched = plan_for(load(config))
    paths.plan.parent.mkdir(parents=True, exist_ok=True)
    paths.plan.write_text(launched.model_dump_json())
    recipe = config.parent / "recipes/deepseek-v4-flash.yaml"
    recipe.write_text(recipe.read_text().replace('OMP_NUM_THREADS: "8"', 'OMP_NUM_THREADS: "1"'))
    assert run(home, baseline, "--epoch", "18", config=config).exit_code == 0
    found = baselines.newest(paths)
    assert found is not None and found[1].groups["environment"]["OMP_NUM_THREADS"] == "8"
    assert found[1].groups["sparkd"]["plan"] == launched.digest


def test_a_name_that_is_none_is_an_error(home: Home, config: Path) -> None:
    found = run(home, drift, "--no-peer", "--baseline", "yesterday", config=config)
    assert found.exception is not None and "not the name of a baseline" in str(found.exception)


def test_a_disk_that_takes_nothing_is_told(home: Home, config: Path, paths: Paths) -> None:
    paths.state.mkdir(parents=True)
    baselines.directory(paths).write_text("a file in the way")
    found = run(home, baseline, "--epoch", "18", config=config)
    assert "the baseline cannot be written" in str(found.exception)


# --- the other nodes -------------------------------------------------------------------------------

SAYS = "the kernel's release was 6.17, is 7.0"
CHANGE = Change(node="spark2", group="kernel", name="release", before="6.17", after="7.0", suspicion=86, says=SAYS)


def diagnosis(**more: Any) -> dict[str, Any]:
    at = "2026-11-21T10:53:04Z"
    seen = Boundary(node="spark2", at=at, unseen={"docker": "Docker does not answer"})
    return Diagnosis(node="spark2", at=at, boundary=seen, **more).model_dump(mode="json")


class Pair(Daemon):
    """A daemon that can ask its peer."""

    answers: tuple[dict[str, Any], ...] = ()

    def verbs(self) -> dict[str, Any]:
        return {**super().verbs(), "diagnose": self._diagnose}

    async def _diagnose(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for answer in self.answers:
            yield answer


@pytest.fixture
def pair(home: Home) -> Iterator[Pair]:
    made = Pair([SERVING])
    with home.daemon(made):
        yield made


def test_both_nodes_are_told(home: Home, config: Path, pair: Pair) -> None:
    known = BaselineName(epoch=18, at="2026-11-21T10:53:04Z")
    pair.answers = ({"node": "spark2", "diagnosis": diagnosis(baseline=known, changes=(CHANGE,))},)
    assert run(home, baseline, "--epoch", "18", config=config).exit_code == 0
    found = run(home, drift, config=config)
    assert found.return_value == 1
    assert "spark1: nothing changed" in found.output and "spark2: 1 change since epoch-18" in found.output
    assert "the kernel's release was 6.17, is 7.0" in found.output and "not compared: docker" in found.output


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            {"node": "spark2", "absent": "its sparkd does not answer"},
            "spark2: could not be asked: its sparkd does not answer",
        ),
        ({"node": "spark2", "diagnosis": {"node": 1}}, "spark2: could not be asked: its answer cannot be read"),
        ({"node": "spark2", "diagnosis": diagnosis()}, "spark2: there is no baseline yet"),
    ],
)
def test_a_node_that_cannot_tell_is_not_one_without_changes(
    home: Home, config: Path, pair: Pair, answer: dict[str, Any], told: str
) -> None:
    pair.answers = (answer,)
    assert run(home, baseline, "--epoch", "18", config=config).exit_code == 0
    found = run(home, drift, config=config)
    assert found.return_value == 3 and told in found.output


def test_without_a_daemon_the_others_could_not_be_asked(home: Home, config: Path) -> None:
    assert run(home, baseline, "--epoch", "18", config=config).exit_code == 0
    found = run(home, drift, config=config)
    assert found.return_value == 3 and "spark2: could not be asked" in found.output


def test_the_most_suspicious_group_comes_first() -> None:
    from datetime import UTC, datetime

    low = CHANGE.model_copy(update={"group": "sysctls", "suspicion": 25, "says": "vm.x was 1, is 2"})
    one = command.Drift("spark2", BaselineName(epoch=18, at="2026-11-21T10:53:04Z"), (CHANGE, low))
    shown = list(command.lines([one], {}, now=datetime(2026, 11, 21, 12, 53, 4, tzinfo=UTC)))
    assert shown == [
        "spark2: 2 changes since epoch-18-2026-11-21T10:53:04Z (2 h 0 min ago)",
        "  kernel",
        "     86  the kernel's release was 6.17, is 7.0",
        "  sysctls",
        "     25  vm.x was 1, is 2",
    ]


def test_root_alone_reads_a_baseline(home: Home, config: Path, paths: Paths) -> None:
    assert run(home, baseline, "--epoch", "18", config=config).exit_code == 0
    (file,) = baselines.directory(paths).iterdir()
    assert os.stat(file).st_mode & 0o077 == 0  # noqa: PTH116
