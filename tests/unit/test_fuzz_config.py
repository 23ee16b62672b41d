"""Whatever lies in the configuration's files: a configuration, or one error that says where. Never a traceback, never long."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkd.config.document import BYTES_MAX, read_document
from sparkd.config.load import load
from sparkd.model.cluster import Cluster, Link, Node
from sparkd.model.errors import ConfigError
from sparkd.model.recipe import ContainerRecipe
from tests.unit.fuzzing import ROOT, broken, examples, grows, runs

CONFIG = ROOT / "config"


def outcome(path: Path) -> str:
    """ "" for a configuration, else the error. Anything else than a ConfigError goes through."""
    try:
        load(path)
    except ConfigError as error:
        assert error.where or error.hint, error.message
        assert len(str(error)) < 2000
        json.dumps(str(error)).encode()
        return str(error)
    return ""


def test_a_broken_configuration_is_an_error_with_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    shutil.copytree(CONFIG, folder)
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*.yaml"))}
    for chance in runs(60):
        path = chance.choice(list(whole))
        path.write_bytes(broken(whole[path], chance))
        outcome(folder / "sparkd.yaml")
        path.write_bytes(whole[path])
    assert outcome(folder / "sparkd.yaml") == ""


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
DEEP_BY_ANCHORS = "".join(f"k{n}: &k{n} {'[' * 40}{f'*k{n - 1}' if n else 'x'}{']' * 40}\n" for n in range(60))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LAUGHS.encode(), "has more than 50000 values"),
        (DEEP_BY_ANCHORS.encode(), "is nested too deeply"),  # each anchor is shallow, all together exhausted the stack
        (b"a: " + b"[" * 2000, "is nested too deeply"),
        (b"? " * 3000, "is nested too deeply"),
        (b"a: " + b"1" * 5000, "is not a plain decimal number"),  # Python turns no 4300 digits into a number
        (b"a: 1.0e+99999\n", "is not a plain decimal number"),  # infinity
        (b"1" * 500 + b": 2\n", "is not a plain decimal number"),
        (b"1: 2\n", "must be text"),
        (b"k" * 500 + b": 2\n", "more than 200 characters"),
        (b"a: 1\na: 2\n", "duplicate key"),
        (b"a: !!python/object/apply:os.system [id]\n", "has no meaning here"),
        (b'a: "\\0"\n', "NUL"),
        (b'a: "\\ud800"\n', "lone surrogate"),
        (b"a: \0\n", "is not allowed"),
        (b"a: \xff\n", "is not UTF-8"),
        (b"\ta: 1\n", "is not YAML"),
        (b"a: &a [*a]\n", "contains itself"),
        (b"a: &a\n  <<: *a\n", "contains itself"),
        (b"#" * (BYTES_MAX + 1), "is larger than"),
    ],
)
def test_what_yaml_can_do_to_a_reader(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "sparkd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as raised:
        read_document(path)
    assert raised.value.where.startswith(str(path))


def test_merging_a_large_mapping_takes_time_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"

    def merge(size: int) -> None:
        path.write_text("base: &b\n" + "".join(f"  k{n}: 1\n" for n in range(size)) + "other:\n  <<: *b\n")
        assert len(read_document(path).data["other"]) == size

    assert grows(merge, 1000) < 9  # 4 is in proportion, 16 was what it took


@given(st.binary(max_size=200))
@settings(max_examples=examples(150))
def test_any_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sparkd.yaml"
        path.write_bytes(content)
        assert outcome(path)


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "missing", "loop", "long"])
def test_something_else_than_a_file(kind: str, tmp_path: Path) -> None:
    """A FIFO whose other end nobody holds would be waited for without an end."""
    path = tmp_path / "sparkd.yaml"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "long":
            path = tmp_path / ("x" * 300)
    assert outcome(path)


def test_a_name_leads_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    shutil.copytree(CONFIG, folder)
    (tmp_path / "outside.yaml").write_text("model: /m\n")
    text = (folder / "sparkd.yaml").read_text()
    for name in ("../../outside", "/etc/passwd", "../recipes/gpt-oss-20b", "x" * 5000, "a/b", ".", ".."):
        (folder / "sparkd.yaml").write_text(text.replace("recipe: deepseek-v4-flash", f"recipe: {json.dumps(name)}"))
        assert "unknown recipe" in outcome(folder / "sparkd.yaml")


UGLY = ("../x", "/x", "a/b", "a b", "a\nb", "-a", "", "a;b", "$(id)", "a\0b", "..", "a" * 5000)


@pytest.mark.parametrize("name", UGLY)
def test_no_name_is_a_path_a_flag_or_a_command(name: str) -> None:
    makes = (
        lambda: Node(name=name, link_address="10.0.0.1"),
        lambda: Cluster(name=name, nodes=(Node(name="a", link_address="10.0.0.1"),)),
        lambda: Link(interface=name),
        lambda: ContainerRecipe(name=name, image="image"),
        lambda: ContainerRecipe(name="engine", image=name),
        lambda: ContainerRecipe(name="engine", image="image", script_directory=f"/{name}/.."),
    )  # fmt: skip
    for number, make in enumerate(makes):
        if (name, number) != ("a/b", 4):  # that is an image's name
            with pytest.raises(ValueError, match="validation error"):
                make()


def test_no_message_shows_what_stands_in_the_place_of_a_secret(tmp_path: Path) -> None:
    """Somebody writes the key itself where the name of its file belongs, or a password that YAML reads as a number."""
    folder = tmp_path / "etc"
    shutil.copytree(CONFIG, folder)
    recipe = folder / "recipes" / "deepseek-v4-flash.yaml"
    whole = recipe.read_text()
    for line, secret in (
        ("api_key_file: S3cr3tValue99", "S3cr3tValue99"),
        ("default_profile: sk-abcdefghijklmnop", "sk-abcdefghijklmnop"),
        ("forbidden_environment: [HF_TOKEN=S3cr3tValue99]\nenvironment: {HF_TOKEN: S3cr3tValue99}", "S3cr3tValue99"),
        ("environment: {HF_TOKEN: 123456789}", "123456789"),
        ("environment: {VLLM_API_KEY: S3cr3tValue99}", "S3cr3tValue99"),
        ("arguments: {api-key: S3cr3tValue99}", "S3cr3tValue99"),
    ):
        names = {part.partition(":")[0] for part in line.splitlines()}
        kept, inside = [], False
        for each in whole.splitlines():
            if each[:1].strip() and not each.startswith("#"):
                inside = each.partition(":")[0] in names
            if not inside:
                kept.append(each)
        recipe.write_text("\n".join(kept) + "\n" + line + "\n")
        told = outcome(folder / "sparkd.yaml")
        assert told and secret not in told, told


def test_the_command_says_64_and_shows_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "sparkd.yaml"
    for content in (
        DEEP_BY_ANCHORS.encode(),
        b"a: " + b"1" * 5000,
        b"cluster: \x1b]0;owned\x07",
        b"\xff",
        b'"\\e[2J": 1',
    ):
        path.write_bytes(content)
        argv = [sys.executable, "-m", "sparkd", "config", "check", "--config", str(path)]
        done = subprocess.run(argv, capture_output=True, cwd=ROOT, timeout=60, check=False)
        assert done.returncode == 64, done.stderr
        assert b"Traceback" not in done.stderr and b"\x1b" not in done.stderr and b"\x07" not in done.stderr
