"""Checks of what clients would meet: parsers, limits and addresses."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_plan import plan
from node_facts import SETTINGS, asked, facts, only, serving

from sparkd.doctor.checks import client as checks
from sparkd.doctor.checks import endpoint
from sparkd.model.cluster import Settings


def argv(*more: str) -> tuple[str, ...]:
    return ("vllm", "serve", "/models/DeepSeek-V4-Flash", "--max-model-len", "131072", *more)


# --- parsers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "parser", "fits"),
    [
        (["DeepSeek-V4-Flash"], "deepseek_v4", True),
        (["DeepSeek-V4-Flash"], "hermes", False),
        (["DeepSeek-V4-Flash"], "parser_of_tomorrow", True),  # nobody can tell
        (["m1", "qwen3_moe", "Qwen3MoeForCausalLM"], "qwen3_coder", True),
        (["m1", "qwen3_moe", "Qwen3MoeForCausalLM"], "deepseek_v31", False),
        (["Qwen2.5-72B-Instruct"], "hermes", True),
        (["gpt-oss-20b", "gpt_oss"], "openai", True),
        (["gpt-oss-120b", "gpt_oss"], "hermes", False),
        (["Llama-4-Scout", "llama4"], "llama4_pythonic", True),
        (["Llama-3.3-70B-Instruct", "llama"], "llama3_json", True),
        (["Llama-3.3-70B-Instruct", "llama"], "qwen3_coder", False),
        (["DeepSeek-R1-Distill-Qwen-32B", "qwen2"], "hermes", True),  # of two families
        (["my-own-model"], "hermes", True),
        (["GLM-4.6", "glm4_moe"], "glm45", True),
        (["Hermes-3-Llama-3.1-8B", "llama"], "hermes", True),
    ],
)
def test_a_tool_parser_is_doubted_only_where_it_is_another_familys(names: list[str], parser: str, fits: bool) -> None:
    assert (checks.misfit(parser, names, 2) is None) == fits


@pytest.mark.parametrize(
    ("names", "parser", "fits"),
    [
        (["DeepSeek-V4-Flash"], "deepseek_v4", True),
        (["DeepSeek-V4-Flash"], "qwen3", False),
        (["gpt-oss-20b"], "openai_gptoss", True),
        (["gpt-oss-20b"], "deepseek_r1", False),
        (["QwQ-32B", "qwen2"], "deepseek_r1", True),
        (["Qwen3-235B-A22B"], "qwen3", True),
    ],
)
def test_a_reasoning_parser_likewise(names: list[str], parser: str, fits: bool) -> None:
    assert (checks.misfit(parser, names, 3) is None) == fits


def test_the_weights_own_configuration_tells_the_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]})
    )
    container = plan().container.model_copy(update={"volumes": (f"{tmp_path}:/models/ours",)})
    about = facts(tmp_path, model="/models/ours", container=container, argv=argv("--tool-call-parser", "deepseek_v31"))
    found = only(checks.tool_parser, about)
    assert str(found.verdict) == "warning" and "Qwen" in found.says and "qwen3_coder" in found.says
    (tmp_path / "config.json").write_text("[")  # then nobody can tell
    again = facts(tmp_path, model="/models/ours", container=container, argv=about.plan.argv)
    assert asked(checks.tool_parser, again) == [("good", "client.tool-parser")]


@pytest.mark.parametrize(
    ("arguments", "answers"),
    [
        ((), []),
        (("--tool-call-parser", "deepseek_v4"), [("warning", "client.tools")]),
        (("--enable-auto-tool-choice",), [("bad", "client.tools")]),
        (("--enable-auto-tool-choice", "--tool-call-parser=deepseek_v4"), [("good", "client.tools")]),
        (("--tool-call-parser", "deepseek_v4", "--enable-auto-tool-choice"), [("good", "client.tools")]),
    ],
)
def test_half_of_what_tools_need(tmp_path: Path, arguments: tuple[str, ...], answers: list[tuple[str, str]]) -> None:
    assert asked(checks.tools, facts(tmp_path, argv=argv(*arguments))) == answers


def test_arguments_as_vllm_reads_them() -> None:
    told = plan(argv=argv("--a", "--b=1", "--c", "2", "--c", "3"))
    assert [checks.argument(told, flag) for flag in "abcd"] == ["", "1", "3", None]


# --- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("131072", 131072), ("128k", 128000), ("128K", 131072), ("1M", 1 << 20), ("auto", None), ("", None)],
)
def test_lengths_as_vllm_takes_them(text: str, number: int | None) -> None:
    assert checks.tokens(text) == number


@pytest.mark.parametrize(("served", "answers"), [(131072, ["good"]), (32768, ["warning"]), (0, [])])
def test_a_shorter_context_than_the_plan_says(tmp_path: Path, served: int, answers: list[str]) -> None:
    about = facts(tmp_path, status=serving(), argv=argv())
    about.remember((endpoint.listed.__wrapped__,), lambda: {"deepseek-v4-flash": served})  # type: ignore[attr-defined]
    assert [each[0] for each in asked(checks.context, about)] == answers


# --- address ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "reached"),
    [
        (["0.0.0.0"], True),
        (["::"], True),
        (["192.168.1.11"], True),
        (["::ffff:192.168.1.11"], True),
        (["127.0.0.1"], False),
        (["10.0.0.1"], False),
    ],
)
def test_who_is_reached(bound: list[str], reached: bool) -> None:
    assert checks.reaches("192.168.1.11", bound) == reached


@contextmanager
def listener(address: str) -> Iterator[int]:
    with socket.create_server((address, 0)) as made:
        yield made.getsockname()[1]


def settings(lan: str) -> Settings:
    data: dict[str, Any] = SETTINGS.model_dump(mode="json")
    data["cluster"]["nodes"][0]["lan_address"] = lan
    return Settings.model_validate(data)


def test_an_address_that_is_on_no_interface(tmp_path: Path) -> None:
    about = facts(tmp_path, status=serving())
    about.settings = settings("203.0.113.7")
    found = only(checks.base_url, about)
    assert found.is_bad and "no interface here has 203.0.113.7" in found.says
    assert asked(checks.lan_down, about) == []


def test_an_endpoint_that_only_this_machine_reaches(tmp_path: Path) -> None:
    here = next(iter(sorted(address for address in checks.local_addresses() if not address.startswith("127."))), None)
    if here is None:
        pytest.skip("this machine has no address but loopback")
    with listener("127.0.0.1") as port:
        about = facts(tmp_path, status=serving(), api_port=port)
        about.settings = settings(here)
        found = only(checks.base_url, about)
    assert found.is_bad and "127.0.0.1 alone" in found.says
    with listener("0.0.0.0") as port:
        about = facts(tmp_path, status=serving(), api_port=port)
        about.settings = settings(here)
        assert asked(checks.base_url, about) == [("good", "client.base-url")]
        assert asked(checks.lan_down, about) == [("good", "client.lan-down")]
    about.rank = 1
    assert asked(checks.base_url, about) == []
