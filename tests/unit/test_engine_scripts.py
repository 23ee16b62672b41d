"""Staging the launch script, in a real container."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_plan import plan
from engine_shell import Engine, shell_spec

from sparkd.engine.build import parse_build, read_build
from sparkd.engine.container import Docker
from sparkd.engine.ensure import ensure
from sparkd.engine.scripts import check_syntax, stage, verify
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Verdict
from sparkd.model.render import API_KEY_PATH

pytest_plugins = ["engine_docker"]

PLAN = plan()


@pytest.fixture
def container(engine: Engine) -> Iterator[tuple[Docker, str]]:
    docker, spec = engine.docker(), shell_spec("t-scripts")
    ensure(docker, spec, {}, image_id=None)
    yield docker, spec.name
    docker.remove(spec.name)


def test_the_script_arrives_byte_for_byte_and_is_left_alone_when_it_is_there(container: tuple[Docker, str]) -> None:
    docker, name = container
    assert verify(docker, name, PLAN).id == "script.missing"
    first = stage(docker, name, PLAN, api_key=None)
    assert first.written and first.path == PLAN.script_path
    assert verify(docker, name, PLAN).verdict is Verdict.GOOD
    assert check_syntax(docker, name, PLAN.script_path).verdict is Verdict.GOOD
    assert not stage(docker, name, PLAN, api_key=None).written

    docker.write_file(name, PLAN.script_path, PLAN.script.replace("vllm", "vlmm").encode(), 0o755)
    assert verify(docker, name, PLAN).id == "script.differs"
    again = stage(docker, name, PLAN, api_key=None)
    assert again.written and again.sha256 == first.sha256
    docker.write_file(name, PLAN.script_path, PLAN.script.encode(), 0o600)
    assert stage(docker, name, PLAN, api_key=None).written, "a wrong mode counts too"

    docker.stop(name, grace_s=1)
    assert not stage(docker, name, PLAN, api_key=None).written, "works while it is stopped"


def test_the_api_key_is_for_root_alone(container: tuple[Docker, str]) -> None:
    docker, name = container
    assert stage(docker, name, PLAN, api_key="sk-1").written
    found = docker.path_stat(name, API_KEY_PATH)
    assert found is not None and found.mode == 0o600
    assert docker.read_file(name, API_KEY_PATH, 100) == b"sk-1"
    assert not stage(docker, name, PLAN, api_key="sk-1").written
    assert stage(docker, name, PLAN, api_key="sk-2").written, "a rotated key is put in place"


def test_scripts_that_cannot_run_are_found_before_a_launch(container: tuple[Docker, str]) -> None:
    docker, name = container
    docker.write_file(name, "/workspace/bad.sh", b"if true; then\n", 0o755)
    bad = check_syntax(docker, name, "/workspace/bad.sh")
    assert bad.id == "script.syntax" and bad.cure is Cure.PERSON and "unexpected end of file" in bad.evidence[0]
    missing = check_syntax(docker, name, "/workspace/vllm-head-090.sh")
    assert missing.id == "script.missing" and "vllm-head-090.sh" in missing.says


def test_a_directory_where_the_script_should_be(container: tuple[Docker, str]) -> None:
    docker, name = container
    docker.exec_run(name, ["mkdir", "-p", f"{PLAN.script_path}/x"], timeout_s=10)
    with pytest.raises(SparkdError, match="is a directory"):
        stage(docker, name, PLAN, api_key=None)
    assert docker.path_exists(name, f"{PLAN.script_path}/x")


def test_the_build_metadata_is_read_where_the_image_has_some(container: tuple[Docker, str]) -> None:
    docker, name = container
    assert read_build(docker, name) == {}
    text = b'build_date: 2026-05-27T21:40:38Z\nvllm_commit: 48cebd4ad\nbuild_args:\n  vllm_ref: main\n  vllm_prs: "41834"\n'
    docker.write_file(name, "/workspace/build-metadata.yaml", text, 0o644)
    build = read_build(docker, name)
    assert build["vllm_commit"] == "48cebd4ad" and build["build_args.vllm_prs"] == "41834"
    with pytest.raises(SparkdError):
        parse_build("- a list\n")
    with pytest.raises(SparkdError):
        parse_build("a: [\n")
