"""What vLLM is told: in the plan, on a living command line, in an operator's own script."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks_facts import LAUNCH, asked, container, engine, facts, given, serving
from engine_plan import ARGV, ENVIRONMENT, plan

from sparkd.doctor.checks import commands, script
from sparkd.doctor.checks.commands import Command
from sparkd.doctor.checks.image import look
from sparkd.doctor.facts import Facts, engine_processes
from sparkd.doctor.facts import container as container_fact
from sparkd.engine import arguments
from sparkd.engine.arguments import json_faults, read_script, value_of, values
from sparkd.engine.inside import parse
from sparkd.engine.spec import state_of
from sparkd.host import processes
from sparkd.model.finding import Verdict
from sparkd.model.plan import LAUNCH_ID_VARIABLE, ClusterPlan

BAD, WARNING, GOOD, UNKNOWN = Verdict.BAD, Verdict.WARNING, Verdict.GOOD, Verdict.UNKNOWN
STRIPPED = "{cudagraph_mode:FULL_AND_PIECEWISE}"


def node(tmp_path: Path, *running: Command, rank: int = 0, **changes: object) -> Facts:
    """A serving node on which these commands live, and no unit of the operator's."""
    here = facts(tmp_path, rank=rank, status=serving(), **changes)
    given(here, commands.living, running)
    given(here, commands.operator_scripts, ())
    given(here, container_fact, container())
    return here


def living(*argv: str, environment: dict[str, str] | None = None, launch: str | None = LAUNCH) -> Command:
    env = {LAUNCH_ID_VARIABLE: LAUNCH} | ENVIRONMENT if environment is None else environment
    return Command("process 4711", argv or ARGV, env, launch, 4711)


# --- reading command lines -------------------------------------------------------------------------


def test_flags_and_values() -> None:
    argv = ("vllm", "serve", "m", "--max_model_len=5", "--headless", "--port", "8000", "--temp", "-1", "-cc", "3")
    assert dict(values(argv)) == {
        "--max-model-len": "5",
        "--headless": None,
        "--port": "8000",
        "--temp": "-1",
        "-cc": "3",
    }
    assert value_of(argv, "--headless") == "" and value_of(argv, "--none") is None
    assert value_of(("--port", "1", "--port", "2"), "--port") == "2"


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (("--compilation-config", STRIPPED), ["--compilation-config"]),
        (
            ("--compilation-config", "cudagraph_mode:FULL", "custom_ops:[all]"),
            ["--compilation-config"],
        ),  # brace expansion
        (("--speculative_config={method:deepseek_mtp}",), ["--speculative-config"]),
        (("--compilation-config", "3"), []),
        (("--compilation-config", '{"cudagraph_mode":"FULL"}'), []),
        (("--compilation-config.mode", "NONE"), []),
        (("--limit-mm-per-prompt", "image=5"), []),
        (("--some-new-config", "{a:b}"), ["--some-new-config"]),
        (("--chat-template", "{{ messages }}"), []),
    ],
)
def test_json_that_lost_its_quotes(argv: tuple[str, ...], flags: list[str]) -> None:
    assert [fault.flag for fault in json_faults(("vllm", "serve", "m", *argv))] == flags


def test_the_plan_of_the_tests_is_whole() -> None:
    assert json_faults(ARGV) == [] and list(arguments.json_arguments(ARGV)) == ["--compilation-config"]


def test_a_script_of_the_operators() -> None:
    text = """#!/bin/bash
# export VLLM_WORKER_MULTIPROC_METHOD=fork \\
export VLLM_WORKER_MULTIPROC_METHOD=spawn NCCL_DEBUG=WARN
OMP_NUM_THREADS=8 exec /usr/local/bin/vllm serve /models/x \\
  --compilation-config '{"cudagraph_mode":"FULL"}' \\
  --node-rank 1 > /tmp/vllm.log 2>&1
echo 'unfinished
"""
    found = read_script(text)
    ((*command,),) = found.commands
    assert command[1:3] == ["serve", "/models/x"] and command[-2:] == ["--node-rank", "1"]
    assert json_faults(command) == [] and value_of(command, "--headless") is None
    assert found.environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn" and found.environment["OMP_NUM_THREADS"] == "8"


# --- the environment ---------------------------------------------------------------------------------


def test_a_forbidden_variable_wherever_it_comes_from(tmp_path: Path) -> None:
    fork = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    assert asked(script.env_forbidden, node(tmp_path, living())).verdict is GOOD
    planned = asked(script.env_forbidden, node(tmp_path, environment=fork))
    assert planned.verdict is BAD and planned.says.startswith("the plan sets VLLM_WORKER_MULTIPROC_METHOD")
    alive = asked(script.env_forbidden, node(tmp_path, living(environment=ENVIRONMENT | fork)))
    assert alive.verdict is BAD and "process 4711 has VLLM_WORKER_MULTIPROC_METHOD=fork" in alive.says
    here = node(tmp_path, living())
    state = container()
    raw = dict(state.raw) | {"Config": {"Env": ["VLLM_WORKER_MULTIPROC_METHOD=fork"], "Labels": {}}}
    given(here, container_fact, state_of(raw))
    inherited = asked(script.env_forbidden, here)
    assert inherited.verdict is WARNING and "container vllm_ds4 sets" in inherited.says


def test_what_is_known_to_break_though_the_recipe_allows_it(tmp_path: Path) -> None:
    here = node(tmp_path, environment={"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, forbidden_environment=())
    assert asked(script.env_forbidden, here).verdict is WARNING


def test_a_preflight_asks_the_plan_alone(tmp_path: Path) -> None:
    here = node(tmp_path, living("vllm", "serve", "x", "--compilation-config", STRIPPED, "--node-rank", "1"))
    here.calm = True
    assert asked(script.json_intact, here).verdict is GOOD and asked(script.headless, here).verdict is GOOD


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"GLOO_SOCKET_IFNAME": "bond0", "NCCL_SOCKET_IFNAME": "bond0", "VLLM_HOST_IP": "10.0.0.1"}, [GOOD]),
        ({"NCCL_SOCKET_IFNAME": "bond0", "VLLM_HOST_IP": "10.0.0.1"}, [WARNING]),
        (
            {"GLOO_SOCKET_IFNAME": "b", "NCCL_SOCKET_IFNAME": "b", "VLLM_HOST_IP": "1.2.3.4", "NCCL_IB_GID_INDEX": ""},
            [BAD],
        ),
        ({"GLOO_SOCKET_IFNAME": " ", "NCCL_SOCKET_IFNAME": "b", "VLLM_HOST_IP": "1.2.3.4"}, [BAD]),
    ],
)
def test_variables_that_a_pair_needs(environment: dict[str, str], said: list[Verdict]) -> None:
    assert [answer.verdict for answer in script.judge_required(environment, gpu=True)] == said


def test_the_address_that_vllm_gives_out(tmp_path: Path) -> None:
    def verdict(address: str) -> Verdict:
        return asked(script.host_ip, node(tmp_path, environment={"VLLM_HOST_IP": address})).verdict

    assert verdict("127.0.0.1") is GOOD
    assert verdict("203.0.113.9") is BAD  # of a block that nobody has
    assert verdict("spark1") is BAD


# --- arguments ---------------------------------------------------------------------------------------


def test_json_in_the_plan_in_a_process_and_in_a_script(tmp_path: Path) -> None:
    broken = ("vllm", "serve", "/m", "--compilation-config", STRIPPED)
    assert asked(script.json_intact, node(tmp_path, living())).verdict is GOOD
    planned = asked(script.json_intact, node(tmp_path, argv=broken))
    assert planned.verdict is BAD and planned.says.startswith("the plan has --compilation-config")
    alive = asked(script.json_intact, node(tmp_path, living(*broken)))
    assert alive.says == f"process 4711 got --compilation-config {STRIPPED}: a shell took its quotes away"
    here = node(tmp_path)
    given(here, commands.operator_scripts, (Command("/workspace/vllm-head.sh in container vllm_ds4 (u)", broken, {}),))
    assert asked(script.json_intact, here).says.startswith("/workspace/vllm-head.sh in container")


@pytest.mark.parametrize(
    ("rank", "argv", "words"),
    [
        (1, ("--node-rank", "1"), "is rank 1 and lacks --headless"),
        (0, ("--node-rank", "0", "--headless"), "rank 0, the head, and has --headless"),
        (0, ("--node-rank", "1", "--headless"), "this node is rank 0"),
        (1, ("--node-rank", "1", "--headless"), ""),
        (0, ("--node-rank", "0"), ""),
        (0, ("--headless",), ""),  # no rank: not one of a pair
    ],
)
def test_workers_are_headless_and_heads_are_not(rank: int, argv: tuple[str, ...], words: str) -> None:
    answers = list(script.judge_headless(living("vllm", "serve", "m", *argv), rank))
    assert [answer.verdict for answer in answers] == ([BAD] if words else [])
    assert not words or words in answers[0].says


def test_the_plan_itself_is_asked_too(tmp_path: Path) -> None:
    worker = node(tmp_path, rank=1, argv=("vllm", "serve", "m", "--node-rank", "1"))
    assert asked(script.headless, worker).says == "the plan is rank 1 and lacks --headless"
    assert script.headless.asked(node(tmp_path, size=1)) == []


def test_ranks_differ_only_where_they_must() -> None:
    head = plan()
    worker = plan(
        rank=1,
        node="spark2",
        argv=(*ARGV[:-1], "1", "--headless"),
        environment=ENVIRONMENT | {"VLLM_HOST_IP": "10.0.0.2", "NCCL_IB_HCA": "rocep1s0f1"},
    )
    (fine,) = script.judge_alike([head, worker])
    assert fine.verdict is GOOD
    other = worker.model_copy(update={"environment": worker.environment | {"OMP_NUM_THREADS": "4"}})
    (differs,) = script.judge_alike([head, other])
    assert differs.verdict is WARNING and differs.says == "spark1 and spark2 differ in OMP_NUM_THREADS: 8, 4"
    longer = worker.model_copy(update={"argv": (*worker.argv, "--max-num-seqs", "4")})
    (argument,) = script.judge_alike([head, longer])
    assert argument.verdict is BAD and "--max-num-seqs" in argument.says


def test_eager_left_from_debugging(tmp_path: Path) -> None:
    eager = living("vllm", "serve", "m", "--enforce-eager")
    assert asked(script.enforce_eager, node(tmp_path, eager)).verdict is WARNING
    assert asked(script.enforce_eager, node(tmp_path, living())).verdict is GOOD
    assert script.enforce_eager.asked(node(tmp_path, eager, gpus=None)) == [], "without a GPU there are no graphs"


def test_a_key_that_all_can_read(tmp_path: Path) -> None:
    seen = asked(script.api_key_visible, node(tmp_path, living("vllm", "serve", "m", "--api-key", "sk-secret")))
    assert seen.verdict is BAD and "sk-secret" not in seen.model_dump_json()
    here = node(tmp_path)
    given(here, container_fact, state_of(dict(container().raw) | {"Config": {"Env": ["VLLM_API_KEY=sk-secret"]}}))
    answer = asked(script.api_key_visible, here)
    assert answer.verdict is WARNING and "sk-secret" not in answer.model_dump_json()


@pytest.mark.parametrize(("port", "verdict"), [(8000, GOOD), (8888, WARNING), (9090, WARNING), (46379, WARNING)])
def test_ports_by_custom(tmp_path: Path, port: int, verdict: Verdict) -> None:
    assert asked(script.port_known, node(tmp_path, api_port=port)).verdict is verdict


def test_units_with_json_in_a_shells_text() -> None:
    text = """vllm serve /models/x --compilation-config '{"cudagraph_mode":"FULL"}' > /tmp/log"""
    assert script.judge_unit_json([("/usr/bin/docker", "exec", "vllm_ds4", "bash", "-c", text)]) == [
        "--compilation-config"
    ]
    assert script.judge_unit_json([("/usr/bin/docker", "exec", "vllm_ds4", "bash", "/workspace/run.sh")]) == []


def test_caches_on_volumes() -> None:
    (fine,) = script.judge_caches(plan())
    assert fine.verdict is GOOD
    bare = plan().container.model_copy(update={"volumes": ("/home/m:/models",)})
    (lost,) = script.judge_caches(plan(container=bare))
    assert lost.verdict is WARNING and "/root/.cache/vllm" in lost.says
    whole = plan().container.model_copy(update={"volumes": ("/srv/cache:/root/.cache",)})
    (covered,) = script.judge_caches(plan(container=whole, environment={"VLLM_USE_FLASHINFER_SAMPLER": "1"}))
    assert covered.verdict is GOOD
    (moved,) = script.judge_caches(plan(environment={"VLLM_CACHE_ROOT": "/scratch/vllm"}))
    assert "/scratch/vllm" in moved.says


# --- the staged file and what was made of it --------------------------------------------------------------


def test_a_script_that_bash_cannot_parse(tmp_path: Path) -> None:
    here = node(tmp_path)
    given(here, look, parse("vllm x\nsyntax 2\nsays run.sh: line 3: unexpected EOF\n"))
    assert asked(script.syntax, here).says == "run.sh: line 3: unexpected EOF"
    given(here, look, parse("vllm x\nsyntax 0\n"))
    assert asked(script.syntax, here).verdict is GOOD
    given(here, look, parse("vllm x\n"))
    assert script.syntax.asked(here) == [], "nothing has been staged"


def test_an_engine_of_another_plan(tmp_path: Path) -> None:
    assert asked(script.stale, node(tmp_path, living())).verdict is GOOD
    drifted = living(*(*ARGV, "--max-num-seqs", "4"))
    answer = asked(script.stale, node(tmp_path, drifted))
    assert answer.verdict is BAD and "--max-num-seqs: the engine has 4, the plan does not" in answer.says
    here = node(tmp_path, drifted)
    here.status = serving(pending="profile latency")
    assert asked(script.stale, here).verdict is WARNING, "a changed configuration waits for its restart"
    by_hand = living(environment=dict(ENVIRONMENT), launch=None)
    assert asked(script.stale, node(tmp_path, by_hand)).verdict is GOOD, "started by hand, but as the plan says"
    assert asked(script.stale, node(tmp_path, Command("process 1", ARGV, None))).verdict is UNKNOWN


def test_a_configuration_that_was_changed_after_the_launch_is_no_fault_of_the_engine(tmp_path: Path) -> None:
    """The daemon has not noticed yet; the plan of the launch is on disk."""
    drifted = (*ARGV, "--max-num-seqs", "4")
    here = node(tmp_path, living(*drifted))
    launched = plan().model_copy(update={"argv": drifted, "node": "spark1"})
    kept = ClusterPlan(recipe="r", profile=None, ranks=(launched,), digest="e")
    here.paths.plan.write_text(kept.model_dump_json())
    answer = asked(script.stale, here)
    assert (answer.verdict, answer.symptom) == (WARNING, True) and "changed after the launch" in answer.says


def test_commands_in_a_units_own_line() -> None:
    line = (
        "/usr/bin/docker",
        "exec",
        "-e",
        "VLLM_WORKER_MULTIPROC_METHOD=fork",
        "ds4",
        "vllm",
        "serve",
        "/m",
        "--node-rank",
        "1",
    )
    (found,) = commands.inline(line)
    assert found.commands == (("vllm", "serve", "/m", "--node-rank", "1"),)
    assert found.environment == {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    assert script.flaws(Command("x", found.commands[0], {}), plan()), "rank 1 without --headless"
    (shelled,) = commands.inline(("/bin/bash", "-lc", "vllm serve /m --compilation-config " + STRIPPED))
    assert json_faults(shelled.commands[0])
    assert not list(commands.inline(("/usr/bin/docker", "start", "-a", "ds4")))


def test_a_script_is_only_missed_by_a_launch_that_lives(tmp_path: Path) -> None:
    here = facts(tmp_path, status={"phase": "idle"})
    given(here, container_fact, container())
    assert script.staged.asked(here) == []


# --- real processes ----------------------------------------------------------------------------------------


@pytest.fixture
def pretender(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the command line and the environment of an engine that a broken script started."""
    program = tmp_path / "vllm"
    program.write_text("#!/usr/bin/env python3\nimport time\ntime.sleep(60)\n")
    program.chmod(0o755)
    if shutil.which("python3") is None:
        pytest.skip("there is no python3")
    argv = [str(program), "serve", plan().model, "--compilation-config", STRIPPED, "--node-rank", "1"]
    process = subprocess.Popen(argv, env={"PATH": "/usr/bin:/bin", "VLLM_WORKER_MULTIPROC_METHOD": "fork"})
    yield process
    process.kill()
    process.wait(timeout=10)


def test_a_living_engine_is_read_from_proc(tmp_path: Path, pretender: subprocess.Popen[bytes]) -> None:
    here = facts(tmp_path, status=serving())
    given(here, container_fact, None)
    given(here, commands.operator_scripts, ())
    deadline = time.monotonic() + 10
    found: tuple[processes.EngineProcess, ...] = ()
    while not found and time.monotonic() < deadline:  # env, then python, then the program: three execs
        found = tuple(each for each in processes.engine_processes() if each.pid == pretender.pid)
        time.sleep(0.02)
    given(here, engine_processes, found)
    assert [answer.verdict for answer in script.json_intact.asked(here)] == [BAD]
    assert f"process {pretender.pid} has VLLM_WORKER_MULTIPROC_METHOD=fork" in asked(script.env_forbidden, here).says
    assert any("lacks --headless" in answer.says for answer in script.headless.asked(here))


def test_somebody_elses_engine_is_nobodys_business(tmp_path: Path) -> None:
    here = facts(tmp_path, status=serving())
    given(here, container_fact, None)
    stranger = engine(argv=("vllm", "serve", "/other", "--enforce-eager"), launch_id=None, container_id="d" * 64, pid=1)
    given(here, engine_processes, (stranger,))
    assert commands.living(here) == ()
