"""Repairs in a real container: only in one that sparkd made, shown before, measured after, and never twice."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest
from engine_plan import plan
from engine_shell import Engine, shell_spec
from test_engine_patches import DOUBLED, MXFP4, PATCHED

from sparkd.doctor import fixes
from sparkd.doctor.facts import Facts
from sparkd.engine import cleaning
from sparkd.engine.container import Docker
from sparkd.engine.ensure import ensure
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Finding, Verdict
from sparkd.model.plan import ClusterPlan

pytest_plugins = ["engine_docker"]

PATH = "/usr/lib/python3.12/dist-packages/vllm/quantization/mxfp4.py"
OURS = {"io.sparkd.managed": "true", "io.sparkd.cluster": "spark"}


def found(id: str, verdict: Verdict = Verdict.BAD) -> Finding:
    return Finding(id=id, verdict=verdict, says="as it was found")


def no_tidying(only: Collection[str]) -> list[str]:
    raise AssertionError(f"nobody asked to tidy {only}")


@pytest.fixture(
    params=[OURS, {}, {**OURS, "io.sparkd.cluster": "another"}], ids=["ours", "unlabelled", "other cluster"]
)
def facts(engine: Engine, request: pytest.FixtureRequest) -> Iterator[tuple[Facts, bool]]:
    docker, spec = engine.docker(), shell_spec("t-fixes")
    ensure(docker, spec, request.param, image_id=None)
    part = plan(container=spec, patches=(MXFP4,))
    yield (
        Facts(docker, cluster_plan=ClusterPlan(recipe="r", profile=None, ranks=(part,), digest=""), rank=0),
        request.param == OURS,
    )
    docker.remove(spec.name)


def test_a_missing_script_is_restored_in_our_container_only(facts: tuple[Facts, bool]) -> None:
    about, ours = facts
    offered = fixes.offer([found("script.missing")], about, no_tidying)
    assert len(offered) == (1 if ours else 0)
    script = lambda: about.docker.read_file("t-fixes", about.plan.script_path, 1 << 20)  # noqa: E731
    assert script() is None, "an offer does nothing yet"
    if ours:
        assert any("read back equal" in line for line in offered[0].act())
        assert script() == about.plan.script.encode()
        assert not fixes.offer([found("script.missing")], about, no_tidying), "it is there"


def test_one_that_differs_is_somebodys_work(facts: tuple[Facts, bool]) -> None:
    about, _ = facts
    about.docker.write_file("t-fixes", about.plan.script_path, b"#!/bin/sh\n# mine\n", 0o755)
    assert not fixes.offer([found("script.differs"), found("script.missing")], about, no_tidying)


def test_a_doubled_block_is_folded_with_a_backup_in_our_container_only(facts: tuple[Facts, bool]) -> None:
    about, ours = facts
    about.docker.write_file("t-fixes", PATH, DOUBLED.encode(), 0o644)
    offered = fixes.offer([found("image.mxfp4-doubled")], about, no_tidying)
    assert len(offered) == (1 if ours else 0)
    if ours:
        lines = offered[0].act()
        backup = next(line.rpartition(" ")[2] for line in lines if "as it was" in line)
        assert about.docker.read_file("t-fixes", backup, 1 << 20) == DOUBLED.encode()
    wanted = PATCHED if ours else DOUBLED
    assert about.docker.read_file("t-fixes", PATH, 1 << 20) == wanted.encode()


def test_a_container_that_became_anothers_after_the_offer_is_left(engine: Engine) -> None:
    """The person at the prompt took a minute; meanwhile somebody made a container of that name."""
    docker, spec = engine.docker(), shell_spec("t-swapped")
    part = plan(container=spec, patches=(MXFP4,))
    about = Facts(docker, cluster_plan=ClusterPlan(recipe="r", profile=None, ranks=(part,), digest=""), rank=0)
    try:
        ensure(docker, spec, OURS, image_id=None)
        docker.write_file(spec.name, PATH, DOUBLED.encode(), 0o644)
        offered = fixes.offer([found("script.missing"), found("image.mxfp4-doubled")], about, no_tidying)
        assert len(offered) == 2
        docker.remove(spec.name)
        ensure(docker, spec, {**OURS, "io.sparkd.cluster": "another"}, image_id=None)
        docker.write_file(spec.name, PATH, DOUBLED.encode(), 0o644)
        for fix in offered:
            with pytest.raises(SparkdError, match="no longer what it was"):
                fix.act()
        assert docker.read_file(spec.name, PATH, 1 << 20) == DOUBLED.encode()
        assert docker.read_file(spec.name, part.script_path, 1 << 20) is None
        assert cleaning.our_containers(part, docker) == ()
    finally:
        docker.remove(spec.name)


def test_a_script_that_appeared_after_the_offer_is_left(engine: Engine) -> None:
    docker, spec = engine.docker(), shell_spec("t-appeared")
    part = plan(container=spec)
    about = Facts(docker, cluster_plan=ClusterPlan(recipe="r", profile=None, ranks=(part,), digest=""), rank=0)
    try:
        ensure(docker, spec, OURS, image_id=None)
        (fix,) = fixes.offer([found("script.missing")], about, no_tidying)
        docker.write_file(spec.name, part.script_path, b"#!/bin/sh\n# mine\n", 0o755)
        with pytest.raises(SparkdError, match="there by now"):
            fix.act()
        assert docker.read_file(spec.name, part.script_path, 1 << 20) == b"#!/bin/sh\n# mine\n"
    finally:
        docker.remove(spec.name)


def test_what_cannot_be_folded_is_said_and_left(engine: Engine) -> None:
    docker, spec = engine.docker(), shell_spec("t-unfoldable")
    ensure(docker, spec, OURS, image_id=None)
    crooked = PATCHED + "    torch.cuda.empty_cache()\n    x = 1\n    torch.cuda.empty_cache()\n"
    docker.write_file(spec.name, PATH, crooked.encode(), 0o644)
    part = plan(container=spec, patches=(MXFP4,))
    about = Facts(docker, cluster_plan=ClusterPlan(recipe="r", profile=None, ranks=(part,), digest=""), rank=0)
    try:
        offered = fixes.offer([found("image.mxfp4-doubled")], about, no_tidying)
        said: list[str] = []
        assert fixes.carry_out(offered, said.append, lambda fix: True) is False
        assert any("not done" in line and "by hand" in line for line in said), said
        assert docker.read_file(spec.name, PATH, 1 << 20) == crooked.encode()
    finally:
        docker.remove(spec.name)


def test_good_and_foreign_findings_get_no_repair() -> None:
    about = Facts(Docker("unix:///nonexistent"))
    harmless = [found("shm.leftovers", Verdict.GOOD), found("memory.page-cache", Verdict.UNKNOWN)]
    for_people = [
        found("link.carrier"),
        found("process.foreign"),
        found("weights.truncated"),
        found("container.differs"),
    ]
    assert fixes.offer([*harmless, *for_people], about, no_tidying) == []


def test_each_is_shown_then_agreed_to_then_done_and_measured() -> None:
    order: list[str] = []

    def act() -> list[str]:
        order.append("acted")
        return ["3 segments fewer"]

    def refuse() -> list[str]:
        raise SparkdError("it stays", hint="look yourself")

    first = fixes.Fix("shm.leftovers", "remove 3", ("/dev/shm/psm_1: ours",), act)
    second = fixes.Fix("process.stale", "end 1", (), refuse)
    assert fixes.carry_out([first], order.append, lambda fix: False)
    assert "acted" not in order and order[-1].endswith("left as it is")
    order.clear()
    assert not fixes.carry_out([first, second], order.append, lambda fix: True), "one could not be done"
    assert order[:4] == ["shm.leftovers: remove 3", "    /dev/shm/psm_1: ours", "acted", "  done: 3 segments fewer"]
    assert order[-1] == "  not done: it stays (hint: look yourself)"
