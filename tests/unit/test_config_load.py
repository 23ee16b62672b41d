"""Configuration files: the shipped ones load; every mistake gives one readable error with file, line and key."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sparkd.config.document import read_document
from sparkd.config.load import load, plan_for
from sparkd.model.errors import EXIT_USAGE, ConfigError

ROOT = Path(__file__).parents[2]

SETTINGS = """\
cluster:
  name: lab
  nodes:
    - name: spark1
      link_address: 10.0.0.1
      environment:
        VLLM_HOST_IP: "192.168.1.11"
    - name: spark2
      link_address: 10.0.0.2
  link:
    mtu: 9000
recipe: tiny
profile: small
"""

RECIPE = """\
model: /models/tiny
container:
  name: engine
  image: example/engine:1
  volumes:
    - /models:/models
environment:
  OMP_NUM_THREADS: "8"
arguments:
  port: 8000
  tensor-parallel-size: 2
  gpu-memory-utilization: 0.90
"""

PROFILE = """\
description: A small one
arguments:
  max-num-seqs: 4
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "profiles" / "tiny").mkdir(parents=True)
    (tmp_path / "sparkd.yaml").write_text(SETTINGS)
    (tmp_path / "recipes" / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "profiles" / "tiny" / "small.yaml").write_text(PROFILE)
    return tmp_path


def failure(etc: Path) -> str:
    """The one error, as `where: message`, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(etc / "sparkd.yaml")
    assert caught.value.exit_code == EXIT_USAGE
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{etc}/", "")


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new))


# --- what loads ------------------------------------------------------------------------------------


def test_a_configuration_loads(etc: Path) -> None:
    configuration = load(etc / "sparkd.yaml")
    assert configuration.recipe.name == "tiny"
    assert list(configuration.profiles) == ["small"]
    assert [file.name for file in configuration.files] == ["sparkd.yaml", "tiny.yaml", "small.yaml"]
    plan = plan_for(configuration)
    assert plan.profile == "small"
    assert "--gpu-memory-utilization 0.90 " in " ".join(plan.ranks[0].argv)


def test_the_fingerprint_changes_with_any_file_and_with_nothing_else(etc: Path) -> None:
    first = load(etc / "sparkd.yaml").fingerprint
    assert load(etc / "sparkd.yaml").fingerprint == first
    seen = {first}
    for name in ("sparkd.yaml", "recipes/tiny.yaml", "profiles/tiny/small.yaml"):
        with (etc / name).open("a") as file:
            file.write("# a comment\n")
        seen.add(load(etc / "sparkd.yaml").fingerprint)
    (etc / "profiles" / "tiny" / "other.yaml").write_text(PROFILE)
    seen.add(load(etc / "sparkd.yaml").fingerprint)
    assert len(seen) == 5


def test_profile_asked_for_wins_over_settings_and_these_over_the_recipe(etc: Path) -> None:
    (etc / "profiles" / "tiny" / "large.yaml").write_text(PROFILE)
    (etc / "profiles" / "tiny" / "usual.yaml").write_text(PROFILE)
    with (etc / "recipes" / "tiny.yaml").open("a") as file:
        file.write("default_profile: usual\n")
    configuration = load(etc / "sparkd.yaml")
    assert plan_for(configuration, "large").profile == "large"
    assert plan_for(configuration).profile == "small"
    replace(etc / "sparkd.yaml", "profile: small\n", "")
    assert plan_for(load(etc / "sparkd.yaml")).profile == "usual"
    with pytest.raises(ConfigError, match="unknown profile 'huge'"):
        plan_for(configuration, "huge")


def test_anchors_and_merges(etc: Path) -> None:
    text = SETTINGS.replace(
        '      environment:\n        VLLM_HOST_IP: "192.168.1.11"\n',
        '      environment: &all\n        NCCL_IB_HCA: a\n        VLLM_HOST_IP: "192.168.1.11"\n',
    ).replace(
        "link_address: 10.0.0.2\n",
        'link_address: 10.0.0.2\n      environment:\n        VLLM_HOST_IP: "192.168.1.12"\n        <<: *all\n',
    )
    (etc / "sparkd.yaml").write_text(text)
    first, second = load(etc / "sparkd.yaml").settings.cluster.nodes
    assert first.environment == {"NCCL_IB_HCA": "a", "VLLM_HOST_IP": "192.168.1.11"}
    assert second.environment == {"NCCL_IB_HCA": "a", "VLLM_HOST_IP": "192.168.1.12"}


def test_an_error_in_merged_keys_is_shown_where_they_stand(etc: Path) -> None:
    replace(etc / "sparkd.yaml", "  link:\n    mtu: 9000\n", "  link:\n    <<: {mtu: big}\n")
    assert failure(etc).startswith("sparkd.yaml:11: cluster.link.mtu: must be a valid integer")


# --- mistakes ----------------------------------------------------------------------------------------

MISTAKES = {
    # name: (file, old text, new text, the whole error)
    "wrong key": ("sparkd.yaml", "link_address: 10.0.0.2", "link_adress: 10.0.0.2",
        "sparkd.yaml:9: cluster.nodes[1].link_adress: unknown key (did you mean link_address?)"),
    "two wrong keys": ("sparkd.yaml", "name: spark2\n      link_address: 10.0.0.2", "nam: spark2\n      link: 10.0.0.2",
        "sparkd.yaml:8: cluster.nodes[1].nam: unknown key (did you mean name?) (and 2 more)"),
    "one letter": ("sparkd.yaml", "mtu: 9000", "mtu: 9000\n    prot: 1",
        "sparkd.yaml:12: cluster.link.prot: unknown key (did you mean port?)"),
    "far off": ("sparkd.yaml", "mtu: 9000", "zzz: 9000",
        "sparkd.yaml:11: cluster.link.zzz: unknown key (known: interface, mtu, port)"),
    "wrong key at the top": ("sparkd.yaml", "recipe: tiny", "recipe: tiny\nprofiles: x",
        "sparkd.yaml:13: profiles: unknown key (did you mean profile?)"),
    "wrong type": ("sparkd.yaml", "mtu: 9000", "mtu: big",
        "sparkd.yaml:11: cluster.link.mtu: must be a valid integer, not 'big'"),
    "a quoted number": ("sparkd.yaml", "mtu: 9000", 'mtu: "9000"',
        "sparkd.yaml:11: cluster.link.mtu: must be a valid integer, not '9000'"),
    "out of range": ("sparkd.yaml", "mtu: 9000", "mtu: 90000",
        "sparkd.yaml:11: cluster.link.mtu: must be less than or equal to 65535, not the number 90000"),
    "a list for a mapping": ("sparkd.yaml", "  link:\n    mtu: 9000", "  link:\n    - 9000",
        "sparkd.yaml:10: cluster.link: must be an object, not a list"),
    "nothing": ("sparkd.yaml", "recipe: tiny", "recipe:",
        "sparkd.yaml:12: recipe: must be a valid string, not empty"),
    "missing key": ("sparkd.yaml", "recipe: tiny\n", "",
        "sparkd.yaml:1: recipe: missing key"),
    "bad address": ("sparkd.yaml", "link_address: 10.0.0.2", "link_address: 10.0.0.256",
        "sparkd.yaml:9: cluster.nodes[1].link_address: '10.0.0.256' is not an IPv4 address"),
    "duplicate address": ("sparkd.yaml", "link_address: 10.0.0.2", "link_address: 10.0.0.1",
        "sparkd.yaml:9: cluster.nodes[1].link_address: 10.0.0.1 is already used by nodes[0]"),
    "an address of the other's": ("sparkd.yaml", "link_address: 10.0.0.2", "link_address: 10.0.0.2\n      lan_address: 10.0.0.1",
        "sparkd.yaml:10: cluster.nodes[1].lan_address: 10.0.0.1 is already used by nodes[0]"),
    "duplicate name": ("sparkd.yaml", "name: spark2", "name: spark1",
        "sparkd.yaml:8: cluster.nodes[1].name: spark1 is already used by nodes[0]"),
    "duplicate key": ("sparkd.yaml", "    mtu: 9000", "    mtu: 9000\n    mtu: 1500",
        "sparkd.yaml:12: cluster.link.mtu: duplicate key, first given in line 11"),
    "unknown recipe": ("sparkd.yaml", "recipe: tiny", "recipe: tinny",
        "sparkd.yaml:12: recipe: unknown recipe 'tinny' (known: tiny)"),
    "a recipe elsewhere": ("sparkd.yaml", "recipe: tiny", "recipe: ../recipes/tiny",
        "sparkd.yaml:12: recipe: unknown recipe '../recipes/tiny' (known: tiny)"),
    "unknown profile": ("sparkd.yaml", "profile: small", "profile: smal",
        "sparkd.yaml:13: profile: unknown profile 'smal' (known: small)"),
    "a unit on no node": ("sparkd.yaml", "profile: small", "operator_units:\n  - name: x.service\n    nodes: [spark1, spark3]",
        "sparkd.yaml:15: operator_units[0].nodes[1]: no node is called spark3 (known: spark1, spark2)"),
    "a policy that is none": ("sparkd.yaml", "profile: small", "drop_caches: sometimes",
        "sparkd.yaml:13: drop_caches: must be 'always', 'when-short' or 'never', not 'sometimes'"),
    "yes": ("sparkd.yaml", "profile: small", "profile: yes",
        "sparkd.yaml:13: profile: yes is true or false to some and text to others"),
    "octal": ("sparkd.yaml", "mtu: 9000", "mtu: 09000\n    port: 010",
        "sparkd.yaml:12: cluster.link.port: 010 is not a plain decimal number"),
    "a number as a variable": ("recipes/tiny.yaml", '"8"', "8",
        "recipes/tiny.yaml:8: environment.OMP_NUM_THREADS: must be text, not the number 8"),
    "a truth value as a variable": ("recipes/tiny.yaml", '"8"', "true",
        "recipes/tiny.yaml:8: environment.OMP_NUM_THREADS: must be text, not true"),
    "a variable without a name": ("recipes/tiny.yaml", "OMP_NUM_THREADS", "OMP-NUM-THREADS",
        "recipes/tiny.yaml:8: environment.OMP-NUM-THREADS: is not a name that an environment variable can have"),
    "bash's variable": ("recipes/tiny.yaml", "OMP_NUM_THREADS", "UID",
        "recipes/tiny.yaml:8: environment.UID: bash sets this variable itself, a recipe cannot"),
    "a secret": ("recipes/tiny.yaml", "OMP_NUM_THREADS", "VLLM_API_KEY",
        "recipes/tiny.yaml:8: environment.VLLM_API_KEY: is a secret; put it in a file and name that file in the recipe's "
        "api_key_file"),
    "a secret argument": ("recipes/tiny.yaml", "port: 8000", "port: 8000\n  api_key: x",
        "recipes/tiny.yaml:11: arguments.api_key: everybody could read it in the process list; use api_key_file"),
    "a derived argument": ("recipes/tiny.yaml", "port: 8000", "port: 8000\n  node_rank: 0",
        "recipes/tiny.yaml:11: arguments.node_rank: is derived from the cluster, a recipe cannot set it"),
    "dashes": ("recipes/tiny.yaml", "port: 8000", "--port: 8000",
        "recipes/tiny.yaml:10: arguments.--port: write argument names without dashes in front"),
    "the same argument twice": ("recipes/tiny.yaml", "port: 8000", "tensor_parallel_size: 1",
        "recipes/tiny.yaml:11: arguments.tensor-parallel-size: is given twice (- and _ are the same in an argument's name)"),
    "an argument without a value": ("recipes/tiny.yaml", "port: 8000", "port:",
        "recipes/tiny.yaml:10: arguments.port: has no value (for a bare flag write true; null is for profiles)"),
    "a port that is none": ("recipes/tiny.yaml", "port: 8000", "port: 80000",
        "recipe tiny: arguments.port: 80000 is not a port (1 to 65535)"),
    "one port for two": ("recipes/tiny.yaml", "port: 8000", "port: 29501",
        "ports: port 29501 is wanted by both the endpoint (arguments.port) and the rendezvous (rendezvous_port)"),
    "too few ranks": ("recipes/tiny.yaml", "tensor-parallel-size: 2", "tensor-parallel-size: 1",
        "recipe tiny: tensor-parallel-size 1 times pipeline-parallel-size 1 cannot be spread over 2 nodes"),
    "infinity": ("recipes/tiny.yaml", "port: 8000", "port: .inf",
        "recipes/tiny.yaml:10: arguments.port: .inf is not a plain decimal number"),
    "NUL": ("recipes/tiny.yaml", '"8"', r'"8\0"',
        "recipes/tiny.yaml:8: environment.OMP_NUM_THREADS: contains a NUL byte, which nothing here can carry"),
    "half a character": ("recipes/tiny.yaml", '"8"', r'"\ud83d"',
        "recipes/tiny.yaml:8: environment.OMP_NUM_THREADS: contains half of a character (a lone surrogate)"),
    "a relative volume": ("recipes/tiny.yaml", "- /models:/models", "- /models",
        "recipes/tiny.yaml:6: container.volumes[0]: '/models' is not host path:container path[:ro]"),
    "another's home": ("recipes/tiny.yaml", "- /models:", "- ~milo/models:",
        "recipes/tiny.yaml:6: container.volumes[0]: '~milo/models': only ~ itself is known (root's home); write it out"),
    "another name than the file's": ("recipes/tiny.yaml", "model: /models/tiny", "name: big\nmodel: /models/tiny",
        "recipes/tiny.yaml:1: name: the file is called tiny.yaml, so this must be tiny (or left out)"),
    "unknown default": ("recipes/tiny.yaml", "model: /models/tiny", "default_profile: big\nmodel: /models/tiny",
        "recipes/tiny.yaml:1: default_profile: unknown profile 'big' (known: small)"),
    "in a profile": ("profiles/tiny/small.yaml", "max-num-seqs: 4", "max-num-seqs: [1, -x]",
        "profiles/tiny/small.yaml:3: arguments.max-num-seqs: '-x' in a list would be taken for an option"),
    "a key that is no text": ("sparkd.yaml", "profile: small", "8: small",
        "sparkd.yaml:13: the key '8' must be text"),
    "a tag": ("sparkd.yaml", "profile: small", "profile: !!python/name:os.system x",
        "sparkd.yaml:13: profile: the tag 'tag:yaml.org,2002:python/name:os.system' has no meaning here"),
    "an anchor in itself": ("sparkd.yaml", "profile: small", "profile: &a [*a]",
        "sparkd.yaml:13: profile[0]: this anchor contains itself"),
    "no YAML": ("sparkd.yaml", "profile: small", "profile: [small",
        "sparkd.yaml:14: is not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
    "a tab": ("sparkd.yaml", "    mtu", "\tmtu",
        "sparkd.yaml:11: is not YAML: while scanning for the next token, found character '\\t' that cannot start any token"),
    "two documents": ("sparkd.yaml", "profile: small", "---\nprofile: small",
        "sparkd.yaml:13: is not YAML: expected a single document in the stream, but found another document"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_error_with_file_line_and_key(name: str, etc: Path) -> None:
    file, old, new, told = MISTAKES[name]
    replace(etc / file, old, new)
    assert failure(etc) == told


CONTENTS = {
    "empty": (b"", "sparkd.yaml: the file is empty"),
    "only a comment": (b"# later\n", "sparkd.yaml: the file is empty"),
    "not keys": (b"- a\n- b\n", "sparkd.yaml:1: is not a list of keys and values (`key: value`)"),
    "latin 1": (b"cluster:\n  name: caf\xe9\n", "sparkd.yaml:2: is not UTF-8: byte 0xe9"),
    "raw NUL": (b"a: b\nc: \0\n", "sparkd.yaml:2: is not YAML: the character '\\x00' is not allowed"),
    "deep": (b"[" * 50_000, "sparkd.yaml: is nested too deeply"),
    "large": (b"#" * 1_000_001, "sparkd.yaml: is larger than 400000 bytes: not a configuration of sparkd"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_is_no_configuration(name: str, etc: Path) -> None:
    content, told = CONTENTS[name]
    (etc / "sparkd.yaml").write_bytes(content)
    assert failure(etc) == told


def test_anchors_that_multiply_are_stopped(etc: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (etc / "sparkd.yaml").write_text("\n".join(lines))
    assert "has more than 50000 values" in failure(etc)


def test_a_missing_file_a_folder_and_a_pipe(etc: Path) -> None:
    file = etc / "sparkd.yaml"
    file.unlink()
    assert failure(etc) == "sparkd.yaml: cannot be read: No such file or directory"
    file.mkdir()
    assert failure(etc) == "sparkd.yaml: is not a file"
    file.rmdir()
    os.mkfifo(file)  # opening it would wait for a writer, for ever
    assert failure(etc) == "sparkd.yaml: is not a file"


def test_a_byte_order_mark_is_no_mistake(etc: Path) -> None:
    file = etc / "sparkd.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load(file).recipe.name == "tiny"


def test_several_mistakes_show_the_first_by_line(etc: Path) -> None:
    replace(etc / "sparkd.yaml", "mtu: 9000", "mtu: big")
    replace(etc / "sparkd.yaml", "name: spark1", "name: -x")
    assert failure(etc).startswith("sparkd.yaml:4: cluster.nodes[0].name: ")
    assert failure(etc).endswith("(and 1 more)")


def test_the_hint_shows_how_to_write_it(etc: Path) -> None:
    replace(etc / "recipes" / "tiny.yaml", '"8"', "8.50")
    with pytest.raises(ConfigError) as caught:
        load(etc / "sparkd.yaml")
    assert caught.value.hint == 'write it in quotes: "8.50"'


# --- YAML ----------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"), max_size=20)
data = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=15,
)


@given(written=st.dictionaries(texts, data, min_size=1, max_size=5))
def test_what_another_program_wrote_is_read_back(
    written: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(yaml.safe_dump(written, allow_unicode=True), encoding="utf-8")
    assert read_document(file).data == written


# --- an ordinary user ------------------------------------------------------------------------------------


def test_an_ordinary_user_can_check_the_configuration(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        load(ROOT / "config" / "sparkd.yaml")  # this run is the proof
        return
    folder = Path("/tmp") / f"sparkd-test-{os.getpid()}"  # pytest's own folders are closed to others
    try:
        shutil.copytree(ROOT / "config", folder)
        recipe = folder / "recipes" / "deepseek-v4-flash.yaml"
        recipe.chmod(0o600)
        assert as_nobody(folder / "sparkd.yaml") == f"{recipe}: cannot be read: Permission denied"
        recipe.chmod(0o644)
        assert as_nobody(folder / "sparkd.yaml") == "deepseek-v4-flash"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_nobody(file: Path) -> str:
    """What `load` says to a process without rights. A fork, because this Python may lie where nobody else can read it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            told = load(file).recipe.name
        except Exception as error:
            told = str(error)
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told
