"""Which plan a node prepares: the asked profile, the configured one where none is asked, and a changed file where that brings
the nodes together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparkd.agent.effects import Effects
from sparkd.agent.store import Store
from sparkd.config.load import load, plan_for
from sparkd.control.state import Me
from sparkd.engine.container import Docker
from sparkd.host.paths import Paths

SHIPPED = Path(__file__).parents[2] / "config"


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    etc = tmp_path / "etc"
    shutil.copytree(SHIPPED, etc)
    configuration = load(etc / "sparkd.yaml")
    names = tuple(node.name for node in configuration.settings.cluster.nodes)
    me = Me(names[0], 0, names, "boot-1", "0.1.0", configuration.settings.limits)
    paths = Paths.from_environment()
    return Effects(me, configuration, paths, Store(paths), Docker("unix:///nonexistent/docker.sock"))


def test_no_asked_profile_is_the_configured_one(effects: Effects) -> None:
    """A head that lost its state has forgotten the profile that its worker still holds."""
    configured = effects.cluster_plan
    effects._for_profile("latency")
    assert effects.cluster_plan.profile == "latency" != configured.profile
    effects._for_profile(None)
    assert effects.cluster_plan == configured


@pytest.mark.parametrize(
    ("others", "taken"),
    [(("ours", "theirs"), True), (("theirs",), True), (("ours", "ours"), False), (("another",), False), ((), False)],
)
def test_a_changed_file_is_taken_where_a_node_that_differs_has_it(
    effects: Effects, others: tuple[str, ...], taken: bool
) -> None:
    before = effects.cluster_plan.digest
    recipe = next((effects.configuration.path.parent / "recipes").glob("deepseek*.yaml"))
    recipe.write_text(recipe.read_text().replace('MAX_MODEL_LEN: "1"', 'MAX_MODEL_LEN: "0"'))
    assert effects.notice_files() is not None
    changed = plan_for(load(effects.configuration.path)).digest
    digests = {"ours": before, "theirs": changed, "another": "0" * 64}
    effects._take_what_others_have(tuple(digests[name] for name in others))
    assert changed != before
    assert effects.cluster_plan.digest == (changed if taken else before)
