"""What the engine received: compared argument by argument, and read from a real process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_plan import ARGV, ENVIRONMENT, plan

from sparkd.engine.process import argument_differences, compare, engine_argv
from sparkd.model.finding import Cure, Finding, Verdict

LAUNCH = "1f2e3d4c-18"
PLAN = plan()
START_MAX_S = 20


def compared(argv: tuple[str, ...] = ARGV, **environment: str) -> list[Finding]:
    real = ("/usr/bin/python3", "/usr/local/bin/vllm", *argv[1:])
    return compare(
        PLAN, argv=real, environment=ENVIRONMENT | {"SPARKD_LAUNCH_ID": LAUNCH} | environment, launch_id=LAUNCH
    )


def changed(old: str, new: str | None) -> tuple[str, ...]:
    at = ARGV.index(old)
    return ARGV[:at] + ((new,) if new is not None else ()) + ARGV[at + 1 :]


def test_the_same_is_good() -> None:
    assert {finding.verdict for finding in compared()} == {Verdict.GOOD}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            changed("--enable-expert-parallel", None),
            "--enable-expert-parallel: the plan has no value, the engine did not get it",
        ),
        (changed("131072", "200000"), "--max-model-len: plan 131072, engine 200000"),
        ((*ARGV, "--enforce-eager"), "--enforce-eager: the engine has no value, the plan does not"),
        (changed("/models/DeepSeek-V4-Flash", "/models/other"), "command: plan vllm serve /models/DeepSeek-V4-Flash"),
        (
            changed(ARGV[13], "{cudagraph_mode:FULL_AND_PIECEWISE,custom_ops:[all]}"),
            "engine {cudagraph_mode:FULL_AND_PIECEWISE,custom_ops:[all]} (a shell took its quotes away)",
        ),
        ((*ARGV[:-4], *ARGV[-2:], *ARGV[-4:-2]), "in another order or form"),
    ],
)
def test_a_difference_names_its_argument(argv: tuple[str, ...], says: str) -> None:
    finding = compared(argv)[0]
    assert finding.id == "engine.argv-differs" and finding.cure is Cure.PERSON
    assert says in finding.says


def test_an_api_key_on_a_command_line_is_not_repeated() -> None:
    assert "sk-1" not in str(compared((*ARGV, "--api-key", "sk-1")))


@pytest.mark.parametrize(
    ("environment", "id", "says"),
    [
        (
            {"SPARKD_LAUNCH_ID": "1f2e3d4c-17"},
            "engine.env-differs",
            "SPARKD_LAUNCH_ID: plan '1f2e3d4c-18', engine '1f2e3d4c-17'",
        ),
        ({"OMP_NUM_THREADS": "1"}, "engine.env-differs", "OMP_NUM_THREADS: plan '8', engine '1'"),
        ({"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, "engine.env-forbidden", "VLLM_WORKER_MULTIPROC_METHOD='fork'"),
        ({"NCCL_IB_GID_INDEX": ""}, "engine.env-forbidden", "NCCL_IB_GID_INDEX=''"),
    ],
)
def test_the_environment_is_compared_too(environment: dict[str, str], id: str, says: str) -> None:
    (finding,) = [finding for finding in compared(**environment) if finding.is_bad]
    assert finding.id == id and says in finding.says


def test_another_value_of_a_forbidden_variable_is_fine_and_a_missing_one_is_not() -> None:
    assert not any(finding.is_bad for finding in compared(VLLM_WORKER_MULTIPROC_METHOD="spawn"))
    found = compare(PLAN, argv=ARGV, environment={}, launch_id=LAUNCH)
    assert "NCCL_SOCKET_IFNAME: plan 'bond0', engine has none" in found[1].evidence


def test_a_process_that_is_not_vllm_is_unknown() -> None:
    for argv in ((), ("VLLM::EngineCore",), ("bash", "/workspace/x.sh")):
        assert compare(PLAN, argv=argv, environment={}, launch_id=LAUNCH)[0].verdict is Verdict.UNKNOWN
    assert engine_argv(("/opt/vllm/bin/vllm", "serve")) == ("vllm", "serve")


def test_values_that_look_like_flags_and_flags_with_an_equals_sign() -> None:
    assert argument_differences(("vllm", "--seed", "-1"), ("vllm", "--seed", "-2")) == ["--seed: plan -1, engine -2"]
    assert "another order or form" in argument_differences(("vllm", "--port", "1"), ("vllm", "--port=1"))[0]


def test_the_rendered_script_gives_a_real_process_exactly_the_plan(tmp_path: Path) -> None:
    """Script, bash, exec, interpreter, kernel, `/proc`: the whole way that an argument goes."""
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    program.chmod(0o755)
    script = tmp_path / "vllm-head.sh"
    script.write_text(PLAN.script)
    outer = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NCCL_IB_GID_INDEX": "3"}
    process = subprocess.Popen(["bash", script, LAUNCH], env=outer)
    try:
        deadline = time.monotonic() + START_MAX_S
        proc = Path(f"/proc/{process.pid}")
        while str(program).encode() not in (proc / "cmdline").read_bytes().split(b"\0"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        argv = tuple(part.decode() for part in (proc / "cmdline").read_bytes().split(b"\0")[:-1])
        environment = dict(
            part.decode().partition("=")[::2] for part in (proc / "environ").read_bytes().split(b"\0")[:-1]
        )
        found = compare(PLAN, argv=argv, environment=environment, launch_id=LAUNCH)
        assert [finding.verdict for finding in found] == [Verdict.GOOD, Verdict.GOOD], found
    finally:
        process.kill()
        process.wait()
