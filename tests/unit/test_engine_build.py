"""Does the image have a fix already? Only what is in the artifact counts, and nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from engine_shell import Engine, shell_spec

from sparkd.cli.build import _as_json
from sparkd.cli.build import build as command
from sparkd.engine.build import Asked, Build, Has, asked, has, known, lines, marked, parse_build
from sparkd.engine.container import Docker
from sparkd.engine.ensure import ensure
from sparkd.engine.inside import parse
from sparkd.engine.spec import image_of
from sparkd.model.errors import EXIT_USAGE, SparkdError, UsageError

pytest_plugins = ["engine_docker"]

# As the build scripts of these images write it (field report, and a public image of August 2026).
FIELD = """\
build_date: 2026-05-27T21:40:38Z
build_script_commit: 3f1c2ab45d6e7f8091a2b3c4d5e6f708192a3b4c
vllm_commit: 48cebd4ad65d0b8263474dff1eb6ef83cb4fcc23
flashinfer_commit: unknown
gpu_arch: 12.1a
build_args:
  vllm_repo: "https://github.com/vllm-project/vllm.git"
  vllm_ref: main
  vllm_prs: "41834 43000"
  exp_mxfp4: false
"""
NEWER = """\
build_date: 2026-08-28T16:21:14Z
vllm_version: 0.26.1rc1.dev960+g90104cfe4.d20260828
vllm_commit: 90104cfe4fd67e93e90ae5afadc0f011ebc06fb8
flashinfer_commit: 083012d6
"""
BUILD = Build(image="i", metadata=parse_build(FIELD))


def test_nothing_is_made_of_what_was_written() -> None:
    read = parse_build(FIELD + "odd: 48e6\nempty:\n")
    assert read["build_date"] == "2026-05-27T21:40:38Z" and read["odd"] == "48e6", "neither a date nor a number"
    assert read["build_args.vllm_prs"] == "41834 43000" and read["build_args.exp_mxfp4"] == "false"


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("48cebd4ad", Asked(sha="48cebd4ad")),
        ("g48cebd4ad", Asked(sha="48cebd4ad")),
        ("48CEBD4AD", Asked(sha="48cebd4ad")),
        ("41834", Asked(number="41834")),
        ("#41834", Asked(number="41834")),
        ("PR 41834", Asked(number="41834")),
        ("PR#41834", Asked(number="41834")),
        ("vllm#41834", Asked(number="41834", project="vllm")),
        ("vllm-project/vllm#41834", Asked(number="41834", project="vllm")),
        ("https://github.com/vllm-project/vllm/pull/41834", Asked(number="41834", project="vllm")),
        ("https://github.com/vllm-project/vllm/commit/48cebd4ad65d0b82", Asked(sha="48cebd4ad65d0b82")),
        ("1234567", Asked(sha="1234567")),
    ],
)
def test_ways_to_ask(text: str, question: Asked) -> None:
    assert asked(text) == question


@pytest.mark.parametrize("text", ["", "main", "48cebd", "48cebd4ad65d0b8263474dff1eb6ef83cb4fcc23aa", "v0.23.1", "#"])
def test_what_is_no_question(text: str) -> None:
    with pytest.raises(UsageError, match="neither a commit nor a pull request"):
        asked(text)


@pytest.mark.parametrize(
    ("text", "answer", "words"),
    [
        ("48cebd4ad", Has.YES, "build metadata, vllm_commit"),
        ("48cebd4ad65d0b8263474dff1eb6ef83cb4fcc23", Has.YES, "vllm_commit"),
        ("41834", Has.YES, "build_args.vllm_prs: 41834"),
        ("vllm#43000", Has.YES, "43000"),
        ("flashinfer#41834", Has.UNKNOWN, "build_args.vllm_prs"),
        ("4183", Has.UNKNOWN, "--marker"),  # not the beginning of another number
        ("a1b020012f95", Has.UNKNOWN, "git merge-base --is-ancestor a1b020012f95"),
        ("43733", Has.UNKNOWN, "build_date: 2026-05-27T21:40:38Z"),
    ],
)
def test_what_the_field_reports_image_answers(text: str, answer: Has, words: str) -> None:
    given = has(BUILD, asked(text))
    assert given.has is answer, given
    assert any(words in line for line in given.evidence), given


def test_an_image_that_says_nothing_is_not_a_no() -> None:
    for text in ("48cebd4ad", "41834"):
        answer = has(Build(unseen=("container vllm_ds4 does not run",)), asked(text))
        assert answer.has is Has.UNKNOWN and answer.evidence == ("container vllm_ds4 does not run",)


def test_every_source_counts() -> None:
    inside = parse(
        "vllm /usr/local/bin/vllm\n"
        + json.dumps({"packages": {"vllm": "0.1.dev1+gabcdef012.cu130"}, "vllm_version": "0.1.dev1+gabcdef012"})
    )
    state = image_of(
        {"Id": "sha256:a", "Config": {"Labels": {"org.opencontainers.image.revision": "fedcba9876543210"}}}
    )
    made = known(image="i", state=state, inside=inside, metadata=parse_build(NEWER))
    for text in ("abcdef01", "fedcba9876", "90104cfe4", "083012d6"):
        assert has(made, asked(text)).has is Has.YES, text
    assert ("vLLM", "0.1.dev1+gabcdef012") in list(lines(made))
    assert made.built_at == "2026-08-28T16:21:14Z" and made.pull_requests() == {}
    assert "unknown" not in BUILD.commits().values()
    assert json.loads(json.dumps(_as_json(made)))["commits"]


@pytest.fixture
def container(engine: Engine) -> Iterator[tuple[Docker, str]]:
    docker, spec = engine.docker(), shell_spec("t-build")
    ensure(docker, spec, {"io.sparkd.managed": "true"}, image_id=None)
    yield docker, spec.name
    docker.remove(spec.name)


def test_a_marker_answers_with_no_too(container: tuple[Docker, str]) -> None:
    """The tests' image has no grep: a bash that reads stands in its place, with grep's exit statuses."""
    docker, name = container
    grep = (
        b'#!/usr/bin/bash\nfor last; do :; done; found=1\nwhile [ "$1" != -e ]; do shift; done\n'
        b'for file in "$last"/*.py; do [[ "$(<"$file")" == *"$2"* ]] && { echo "$file"; found=0; }; done\nexit $found\n'
    )
    docker.write_file(name, "/usr/bin/grep", grep, 0o755)
    docker.write_file(name, "/opt/vllm/a.py", b"def release_device_memory(): ...\n", 0o644)
    docker.write_file(name, "/opt/vllm/b.py", b"x = 1\n", 0o644)
    yes = marked(docker, name, "/opt/vllm", "release_device_memory", timeout_s=20)
    assert yes.has is Has.YES and yes.evidence == ("/opt/vllm/a.py",)
    assert marked(docker, name, "/opt/vllm", "lookahead_slots", timeout_s=20).has is Has.NO
    docker.write_file(name, "/usr/bin/grep", b"#!/usr/bin/bash\nexit 2\n", 0o755)
    with pytest.raises(SparkdError, match="ended with 2"):
        marked(docker, name, "/opt/vllm", "x", timeout_s=20)
    docker.write_file(name, "/usr/bin/grep", b"#!/nowhere/bash\n", 0o755)
    with pytest.raises(SparkdError, match="no such file"):
        marked(docker, name, "/opt/vllm", "x", timeout_s=20)


def test_the_command_refuses_before_it_looks(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--config", str(tmp_path / "none.yaml"), "has", "not-a-commit"])
    assert isinstance(result.exception, UsageError) and result.exception.exit_code == EXIT_USAGE
