"""The launch script, executed by a real bash with `vllm` replaced by a program that shows what it received."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkd.config.load import load, plan_for
from sparkd.model.cluster import Cluster, Node, Settings
from sparkd.model.environment import check_name
from sparkd.model.recipe import RESERVED_ARGUMENTS, ContainerRecipe, Recipe
from sparkd.model.render import render_script
from sparkd.model.resolve import resolve

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"

# -I and -S: fast, and nothing in the environment under test can change the witness.
WITNESS = f"""\
#!{sys.executable} -IS
import json, os, sys
argv = [os.fsencode(argument).hex() for argument in sys.argv]
environ = {{name.hex(): value.hex() for name, value in os.environb.items()}}
print(json.dumps([argv, environ]))
"""


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "vllm"
    program.write_text(WITNESS)
    program.chmod(0o755)
    return folder


def run(script: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    file = folder / "script.sh"
    file.write_bytes(script.encode())
    return subprocess.run(
        ["bash", str(file), *arguments],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def received(script: str, folder: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """What the engine's process got from the script."""
    done = run(script, folder, "launch-1", **environment)
    assert done.returncode == 0, done.stderr
    argv, environ = json.loads(done.stdout)
    decoded = [bytes.fromhex(argument).decode() for argument in argv]
    decoded[0] = Path(decoded[0]).name
    return decoded, {bytes.fromhex(n).decode(): bytes.fromhex(v).decode() for n, v in environ.items()}


# --- byte for byte -------------------------------------------------------------------------------

NASTY = ["", "'", '"', "''", "$HOME", "$(id)", "`id`", "!!", "\\", "\\'", "\n", "\r\n", "\t", "-", "--", "--headless", "=", "~",
         "*", "#", " ", "{a,b}", "\x01", "\x7f", "\x01\x7f'", "é", "\u2028", "\U0001f600", "\ufeff", "%s", "<x", ";"]  # fmt: skip
letters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
words = st.one_of(
    st.text(letters, max_size=30), st.lists(st.sampled_from(NASTY), max_size=4).map("".join), st.sampled_from(NASTY)
)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(words, numbers, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=5,
)
several = st.lists(
    st.one_of(words.filter(lambda word: not word.startswith("-")), st.integers(0)), min_size=2, max_size=3
)
argument_names = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,5})?", fullmatch=True).filter(
    lambda name: (
        name not in (*RESERVED_ARGUMENTS, "api-key", "model", "port", "gpu-memory-utilization")
        and not name.startswith(("tensor-", "pipeline-"))
    )
)
argument_values = st.one_of(words, numbers, st.booleans(), several, st.dictionaries(words, values, max_size=3))
argument_maps = st.dictionaries(argument_names, argument_values, max_size=6)


def is_free(name: str) -> bool:
    """A variable that bash leaves alone and that does not decide which `vllm` is found or how it is loaded."""
    try:
        return check_name(name) != "PATH" and not name.startswith(("LD_", "GLIBC_", "PYTHON"))
    except ValueError:
        return False


environments = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(is_free), words, max_size=5
)


def recipe_of(arguments: Mapping[str, Any], environment: Mapping[str, str] = {}, **more: Any) -> Recipe:
    container = ContainerRecipe(name="engine", image="image")
    given = {"name": "r", "model": "/models/m", "container": container, **more}
    return Recipe(arguments=dict(arguments), environment=dict(environment), **given)


def pair(**more: Any) -> Settings:
    nodes = (Node(name="a", link_address="10.0.0.1"), Node(name="b", link_address="10.0.0.2"))
    return Settings(cluster=Cluster(nodes=nodes), recipe="r", **more)


def parsed(argv: list[str], names: set[str]) -> dict[str, list[str]]:
    """The command line as an option parser sees it: {name: its values}."""
    options: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in argv:
        name, joined, value = argument[2:].partition("=")
        if argument.startswith("--") and name in names:
            values = options[name] = [value] if joined else []
        else:
            values.append(argument)
    return options


@settings(max_examples=120, deadline=None)
@given(arguments=argument_maps, environment=environments)
def test_every_argument_and_variable_arrives(
    witness: Path, arguments: dict[str, Any], environment: dict[str, str]
) -> None:
    recipe = recipe_of({"tensor-parallel-size": 2, **arguments}, environment)
    worker = resolve(pair(), recipe, None).ranks[1]
    argv, environ = received(worker.script, witness)

    assert argv == list(worker.argv)
    assert argv[:3] == ["vllm", "serve", "/models/m"]
    assert {name: environ[name] for name in environment} == environment
    assert environ["SPARKD_LAUNCH_ID"] == "launch-1"

    options = parsed(argv[3:], {*arguments, "tensor-parallel-size", *RESERVED_ARGUMENTS})
    assert options["node-rank"] == ["1"]
    for name, value in arguments.items():
        match value:
            case False:
                assert name not in options
            case True:
                assert options[name] == []
            case str():
                assert options[name] == [value]
            case list():
                assert options[name] == [item if isinstance(item, str) else str(item) for item in value]
            case _:
                assert [json.loads(text) for text in options[name]] == [value]


def test_every_variable_that_bash_knows_is_either_exact_or_refused(witness: Path) -> None:
    """`compgen -v` lists what this bash treats specially; none of it may arrive changed without a word."""
    listed = subprocess.run(
        ["bash", "-c", "compgen -v"], capture_output=True, text=True, check=True, env={"PATH": "/bin"}
    )
    names = {name for name in listed.stdout.split() if is_free(name)}
    names |= {"HOSTNAME", "LC_ALL", "LANG", "TZ", "HOME", "TERM", "PS1"}
    environment = dict.fromkeys(names, "7 \\ '")
    _, environ = received(
        resolve(pair(), recipe_of({"tensor-parallel-size": 2}, environment), None).ranks[0].script, witness
    )
    assert {name: environ[name] for name in environment} == environment


# --- what the script refuses and removes -----------------------------------------------------------


def script(**more: Any) -> str:
    given = {"cluster": "c", "node": "n", "rank": 0, "size": 1, "recipe": "r", "profile": None, "argv": ["vllm", "serve", "m"],
             "environment": {}}  # fmt: skip
    return render_script(**{**given, **more})


@pytest.mark.parametrize("arguments", [[], [""], ["one", "two"]])
def test_without_a_launch_id_nothing_starts(witness: Path, arguments: list[str]) -> None:
    done = run(script(), witness, *arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == "sparkd: this script takes one argument, the launch id; start the engine with: sparkd start\n"


def test_forbidden_variables_of_the_image_are_removed(witness: Path) -> None:
    text = script(forbidden_environment=["METHOD=fork", "GONE"], environment={"KEPT": "yes"})
    _, environ = received(text, witness, METHOD="fork", GONE="x")
    assert not {"METHOD", "GONE"} & set(environ)
    _, environ = received(text, witness, METHOD="spawn")
    assert environ["METHOD"] == "spawn"


def test_the_api_key_is_read_from_its_file_and_stands_in_no_script(witness: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    text = script(with_api_key=True).replace("/workspace/.sparkd-api-key", str(key))
    assert text != script(with_api_key=True)
    done = run(text, witness, "launch-1")
    assert (done.returncode, done.stdout) == (66, "")
    assert f"sparkd: no API key in {key}" in done.stderr
    key.write_text("s3cret 'key'\n")
    argv, environ = received(text, witness)
    assert environ["VLLM_API_KEY"] == "s3cret 'key'"
    assert "s3cret" not in " ".join(argv)


def test_a_name_cannot_break_out_of_the_header(witness: Path) -> None:
    argv, _ = received(script(node="x\ntouch /tmp/no\r\nfalse"), witness)
    assert argv == ["vllm", "serve", "m"]


def test_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        script(argv=["vllm", "a\0b"])


# --- golden files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File name and content, for each rank and profile that is shipped."""
    folder = tmp_path_factory.mktemp("etc") / "sparkd"
    shutil.copytree(ROOT / "config", folder)  # the example lies in a folder of its own: read it where it is to be used
    scripts: dict[str, str] = {}
    for file in ("sparkd.yaml", "examples/single-node.yaml"):
        shutil.copy(ROOT / "config" / file, folder / "sparkd.yaml")
        configuration = load(folder / "sparkd.yaml")
        for profile in configuration.profiles or [None]:
            plan = plan_for(configuration, profile)
            for rank in plan.ranks:
                scripts[f"{plan.recipe}.{plan.profile or 'none'}.rank{rank.rank}.sh"] = rank.script
    return scripts


def test_shipped_scripts_are_the_golden_ones(shipped: dict[str, str]) -> None:
    """After an intended change: SPARKD_WRITE_GOLDEN=1 python -m pytest tests/unit/test_render.py, then read the diff."""
    if os.environ.get("SPARKD_WRITE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for name, text in shipped.items():
            (GOLDEN / name).write_text(text)
    assert sorted(file.name for file in GOLDEN.glob("*.sh")) == sorted(shipped)
    for name, text in shipped.items():
        assert text.splitlines() == (GOLDEN / name).read_text().splitlines(), name


def test_shipped_scripts_run(shipped: dict[str, str], witness: Path) -> None:
    for text in shipped.values():
        argv, _ = received(text, witness)
        assert argv[:2] == ["vllm", "serve"]
