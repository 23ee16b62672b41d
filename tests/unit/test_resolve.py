"""Recipe + profile + cluster become plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparkd.config.load import load, plan_for
from sparkd.model.cluster import Cluster, Node, Settings
from sparkd.model.errors import ConfigError
from sparkd.model.plan import ClusterPlan
from sparkd.model.recipe import ContainerRecipe, Profile, Recipe
from sparkd.model.resolve import resolve

ROOT = Path(__file__).parents[2]
PAIR = (Node(name="a", link_address="10.0.0.1", environment={"IP": "1"}), Node(name="b", link_address="10.0.0.2"))


def recipe_of(arguments: dict[str, Any], **more: Any) -> Recipe:
    container = ContainerRecipe(name="engine", image="image", volumes=("~/.cache:/c", "~:/h", "models:/m:ro"))
    return Recipe(**{"name": "r", "model": "/models/m", "container": container, "arguments": arguments, **more})


def plan(
    arguments: dict[str, Any], profile: Profile | None = None, nodes: tuple[Node, ...] = PAIR[:1], **more: Any
) -> ClusterPlan:
    return resolve(Settings(cluster=Cluster(nodes=nodes), recipe="r"), recipe_of(arguments, **more), profile)


def words(arguments: dict[str, Any], profile: Profile | None = None) -> list[str]:
    return list(plan(arguments, profile).ranks[0].argv[3:])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, ["--x"]),
        (False, []),
        ("text", ["--x", "text"]),
        ("", ["--x", ""]),
        ("-1", ["--x=-1"]),
        (-1, ["--x=-1"]),
        (8, ["--x", "8"]),
        (0.5, ["--x", "0.5"]),
        ([1, "b"], ["--x", "1", "b"]),
        (["-b"], ["--x=-b"]),
        ([{"a": True}], ["--x", '{"a":true}']),
        ({"b": 1, "a": ["é", None]}, ["--x", '{"b":1,"a":["é",null]}']),
    ],
)
def test_values(value: Any, expected: list[str]) -> None:
    assert words({"x": value}) == expected


def test_a_profile_changes_in_place_adds_at_the_end_and_removes() -> None:
    profile = Profile(name="p", arguments={"new": 9, "b_b": 7, "c": None, "never-there": None})
    assert words({"a": 1, "b-b": 2, "c": 3, "d": 4}, profile) == ["--a", "1", "--b-b", "7", "--d", "4", "--new", "9"]


def test_dotted_names_keep_what_is_inside() -> None:
    assert words({"compilation_config.cudagraph_mode": "NONE"}) == ["--compilation-config.cudagraph_mode", "NONE"]


def test_environment_recipe_then_profile_then_node() -> None:
    profile = Profile(name="p", environment={"B": "profile", "C": None, "IP": "2"})
    environment = {"A": "recipe", "B": "recipe", "C": "recipe"}
    first, second = plan({"tensor-parallel-size": 2}, profile, PAIR, environment=environment).ranks
    assert first.environment == {"A": "recipe", "B": "profile", "IP": "1"}
    assert second.environment == {"A": "recipe", "B": "profile", "IP": "2"}


def test_the_place_of_each_rank() -> None:
    first, second = plan({"tensor-parallel-size": 2}, nodes=PAIR, rendezvous_port=25000).ranks
    place = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1", "--master-port", "25000"]
    assert list(first.argv[-8:]) == place
    assert list(second.argv[-9:]) == [*place[:3], "1", *place[4:], "--headless"]
    assert (first.script_path, second.script_path) == ("/workspace/sparkd-rank0.sh", "/workspace/sparkd-rank1.sh")
    assert (first.is_head, second.is_head) == (True, False)
    assert plan({}).ranks[0].argv == ("vllm", "serve", "/models/m")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("127.0.0.1", 8000, "/models/m")),
        ({"host": "0.0.0.0", "port": "8001", "served-model-name": "core"}, ("127.0.0.1", 8001, "core")),
        ({"host": "192.168.1.11", "port": 80, "served-model-name": ["x", "y"]}, ("192.168.1.11", 80, "x")),
        ({"host": "::"}, ("::1", 8000, "/models/m")),
        ({"host": "spark1"}, ("spark1", 8000, "/models/m")),
    ],
)
def test_where_the_endpoint_is(arguments: dict[str, Any], expected: tuple[str, int, str]) -> None:
    head = plan(arguments).ranks[0]
    assert (head.api_host, head.api_port, head.served_name) == expected


def test_what_the_proof_may_ask_for() -> None:
    head = plan({"reasoning-parser": "x", "tool-call-parser": "x", "enable-auto-tool-choice": True}).ranks[0]
    assert (head.has_reasoning, head.has_tools) == (True, True)
    head = plan({"tool-call-parser": "x", "enable-auto-tool-choice": False}).ranks[0]
    assert (head.has_reasoning, head.has_tools) == (False, False)


def test_memory_share_and_volumes() -> None:
    head = plan({}).ranks[0]
    assert head.gpu_memory_utilization == 0.9
    assert head.container.volumes == ("/root/.cache:/c", "/root:/h", "models:/m:ro")
    assert plan({"gpu-memory-utilization": "0.85"}).ranks[0].gpu_memory_utilization == 0.85
    for wrong in ("much", "1.5", 0, True):
        with pytest.raises(ConfigError, match="gpu-memory-utilization"):
            plan({"gpu-memory-utilization": wrong})


def test_the_digest_follows_every_rank_and_nothing_else() -> None:
    base = plan({"tensor-parallel-size": 2}, nodes=PAIR)
    assert plan({"tensor-parallel-size": 2}, nodes=PAIR).digest == base.digest
    other_node = (PAIR[0], Node(name="b", link_address="10.0.0.2", environment={"IP": "9"}))
    assert plan({"tensor-parallel-size": 2}, nodes=other_node).digest != base.digest
    assert plan({"tensor_parallel_size": 2}, nodes=PAIR).digest == base.digest


def test_a_forbidden_variable_is_refused_wherever_it_comes_from() -> None:
    forbidden = ("METHOD=fork", "GONE")
    with pytest.raises(ConfigError, match="the environment of a has METHOD=fork, which this recipe forbids"):
        plan({}, Profile(name="p", environment={"METHOD": "fork"}), forbidden_environment=forbidden)
    with pytest.raises(ConfigError, match="GONE=x"):
        plan({}, environment={"GONE": "x"}, forbidden_environment=forbidden)
    head = plan({}, environment={"METHOD": "spawn"}, forbidden_environment=forbidden).ranks[0]
    assert head.environment["METHOD"] == "spawn"


def test_the_key_file_is_named_and_its_path_stands_in_no_argument() -> None:
    head = plan({}, api_key_file="/etc/sparkd/api-key").ranks[0]
    assert head.api_key_file == "/etc/sparkd/api-key"
    assert "/etc/sparkd/api-key" not in head.script
    assert "VLLM_API_KEY" not in head.environment


# --- what is shipped -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "context", "sequences", "batched", "expert_parallel"),
    [
        ("latency", "200000", "4", "16384", False),
        ("throughput", "65536", "16", "8192", True),
        ("balanced", "131072", "8", "16384", True),
        (None, "131072", "8", "16384", True),
    ],
)
def test_the_deployments_profiles(
    profile: str | None, context: str, sequences: str, batched: str, expert_parallel: bool
) -> None:
    found = plan_for(load(ROOT / "config" / "sparkd.yaml"), profile)
    assert found.profile == (profile or "balanced")
    for rank in found.ranks:
        argv = list(rank.argv)
        for flag, value in (
            ("max-model-len", context),
            ("max-num-seqs", sequences),
            ("max-num-batched-tokens", batched),
        ):
            assert argv[argv.index(f"--{flag}") + 1] == value
        assert ("--enable-expert-parallel" in argv) == expert_parallel
        assert (rank.has_reasoning, rank.has_tools, rank.served_name) == (True, True, "deepseek-v4-flash")
        assert rank.environment["VLLM_HOST_IP"] == ("192.168.1.11", "192.168.1.12")[rank.rank]


def test_every_line_of_the_published_script_is_there() -> None:
    """The deployment's own head script (seed 003), with the context and concurrency of its `latency` profile."""
    published = """\
        --served-model-name deepseek-v4-flash --host 0.0.0.0 --port 8000 --trust-remote-code --tensor-parallel-size 2
        --pipeline-parallel-size 1 --kv-cache-dtype fp8 --block-size 256 --enable-prefix-caching --enable-chunked-prefill
        --max-model-len 200000 --max-num-seqs 4 --max-num-batched-tokens 16384 --gpu-memory-utilization 0.90
        --disable-custom-all-reduce
        --compilation-config {"cudagraph_mode":"FULL_AND_PIECEWISE","custom_ops":["all"]}
        --speculative-config {"method":"deepseek_mtp","num_speculative_tokens":2}
        --tokenizer-mode deepseek_v4 --tool-call-parser deepseek_v4 --enable-auto-tool-choice
        --reasoning-parser deepseek_v4 --default-chat-template-kwargs {"thinking":true} --load-format safetensors
        --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --master-port 29501"""
    head = plan_for(load(ROOT / "config" / "sparkd.yaml"), "latency").ranks[0]
    assert sorted(head.argv[3:]) == sorted(published.split())
    exported = """\
        VLLM_HOST_IP=192.168.1.11 NCCL_SOCKET_IFNAME=bond0 NCCL_IB_HCA=rocep1s0f0,rocep1s0f1 NCCL_IB_DISABLE=0
        NCCL_IGNORE_CPU_AFFINITY=1 GLOO_SOCKET_IFNAME=bond0 TORCH_CUDA_ARCH_LIST=12.1a VLLM_ALLOW_LONG_MAX_MODEL_LEN=1
        VLLM_TRITON_MLA_SPARSE=1 VLLM_USE_FLASHINFER_SAMPLER=1 FLASHINFER_DISABLE_VERSION_CHECK=1
        TILELANG_CLEANUP_TEMP_FILES=1 DG_JIT_USE_NVRTC=0 DG_JIT_NVCC_COMPILER=/usr/local/cuda/bin/nvcc OMP_NUM_THREADS=8
        HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1"""
    assert head.environment == dict(pair.split("=", 1) for pair in exported.split())
