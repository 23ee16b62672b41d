"""Checks of the endpoint, over real sockets, and of what lies in real logs and command lines."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_facts import LAUNCH, asked, engine, facts, only, serving, wait_for

from sparkd.doctor.check import Check
from sparkd.doctor.checks import endpoint as checks
from sparkd.doctor.facts import Facts
from sparkd.model.finding import Verdict

FIELD = Path(__file__).parent.parent / "data" / "field"
KEY = "sk-SECRET-abc123"
NAME = "deepseek-v4-flash"


def recorded(name: str) -> tuple[int, str]:
    _, status, body = (FIELD / "http" / f"{name}.txt").read_text().split("\n", 2)
    return int(status.split()[1]), body.strip()


class Engine(http.server.ThreadingHTTPServer):
    """A vLLM's HTTP side: what needs a key needs it, and /invocations does not, as measured."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key: str | None = None
        self.health = 200
        self.models = {"data": [{"id": NAME, "max_model_len": 131072}]}
        self.chat: tuple[int, str] = recorded("chat")
        self.metrics = [""]  # the last one is repeated
        self.invocations = 400
        self.hangs = threading.Event()
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self._refused():
            return
        metrics = self.server.metrics
        replies = {
            "/health": (self.server.health, ""),
            "/v1/models": (200, json.dumps(self.server.models)),
            "/metrics": (200, metrics.pop(0) if len(metrics) > 1 else metrics[0]),
        }
        self._reply(*replies.get(self.path, (404, "")))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        if self._refused():
            return
        if self.path == "/invocations":
            self._reply(self.server.invocations, "{}")
            return
        if self.server.hangs.is_set():
            time.sleep(4)
        self._reply(*self.server.chat)

    def _refused(self) -> bool:
        refused = self.path.startswith("/v1") and self.server.key is not None
        refused = refused and self.headers.get("Authorization") != f"Bearer {self.server.key}"
        if refused:
            self._reply(*recorded("k_nokey"))
        return refused

    def _reply(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Engine]:
    made = Engine()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def at(server: Engine, directory: Path, status: dict[str, Any] | None = None, **changes: Any) -> Facts:
    """Facts of a head that is said to serve there."""
    where = {"api_host": "127.0.0.1", "api_port": server.server_address[1]}
    return facts(directory, status=serving() if status is None else status, **where, **changes)


def keyed(server: Engine, directory: Path, content: str = KEY, mode: int = 0o600) -> Facts:
    file = directory / "api-key"
    file.write_text(content)
    file.chmod(mode)
    return at(server, directory, api_key_file=str(file))


QUICK = [check for check in vars(checks).values() if isinstance(check, Check) and not check.slow]


def verdicts(about: Facts) -> dict[str, str]:
    return {finding.id: str(finding.verdict) for check in QUICK for finding in check.asked(about)}


# --- a healthy one ---------------------------------------------------------------------------------


def test_a_healthy_head_has_nothing_but_good_answers_and_is_not_made_to_generate(
    server: Engine, tmp_path: Path
) -> None:
    found = verdicts(at(server, tmp_path))
    assert set(found.values()) == {"good"} and "endpoint.completion" in found
    assert set(server.asked) == {"/health", "/v1/models"}


def test_a_worker_asks_nothing(server: Engine, tmp_path: Path) -> None:
    about = at(server, tmp_path)
    about.rank = 1
    assert verdicts(about) == {} and server.asked == []


@pytest.mark.parametrize("phase", ["loading", "backoff", "idle", "proving"])
def test_nothing_is_asked_while_nothing_is_claimed(server: Engine, tmp_path: Path, phase: str) -> None:
    about = at(server, tmp_path, serving(phase=phase, serving=False))
    assert verdicts(about) == {} and server.asked == []


# --- does it answer --------------------------------------------------------------------------------


def test_nobody_listens(server: Engine, tmp_path: Path) -> None:
    found = only(checks.unreachable, facts(tmp_path, status=serving(), api_host="127.0.0.1", api_port=1))
    assert found.is_bad and found.symptom and "port 1" in found.says


def test_a_sick_health(server: Engine, tmp_path: Path) -> None:
    server.health = 503
    found = only(checks.healthy, at(server, tmp_path))
    assert found.is_bad and found.says == "/health says 503"


def test_another_model(server: Engine, tmp_path: Path) -> None:
    server.models = {"data": [{"id": "tiny", "max_model_len": 1024}]}
    assert "serves tiny" in only(checks.model_missing, at(server, tmp_path)).says


def test_an_old_proof_is_made_good_by_a_completion(server: Engine, tmp_path: Path) -> None:
    old = serving(proof_age_s=10_000.0)
    assert only(checks.completion, at(server, tmp_path, old)).verdict is Verdict.GOOD
    assert server.asked == ["/v1/chat/completions"]
    server.chat = (500, '{"error": {"message": "EngineCore encountered an issue."}}')
    found = only(checks.completion, at(server, tmp_path, old))
    assert (found.id, found.verdict, found.symptom) == ("endpoint.error", Verdict.BAD, True)


def test_a_completion_that_hangs_is_bad_alone_and_doubtful_beside_others(server: Engine, tmp_path: Path) -> None:
    server.hangs.set()
    old = serving(proof_age_s=10_000.0)
    assert asked(checks.completion, at(server, tmp_path, old)) == [("bad", "endpoint.timeout")]
    server.metrics = ["vllm:num_requests_running 2"]
    assert asked(checks.completion, at(server, tmp_path, old)) == [("warning", "endpoint.completion")]


def metrics(tokens: int, usage: float = 0.5, running: int = 3) -> str:
    lines = (
        ("vllm:num_requests_running", running),
        ("vllm:generation_tokens_total", tokens),
        ("vllm:kv_cache_usage_perc", usage),
    )
    return "".join(f'{name}{{engine="0"}} {value}\n' for name, value in lines)


@pytest.mark.parametrize(
    ("age_s", "pages", "verdict"),
    [
        (4.0, [metrics(1), metrics(1)], []),  # a fresh proof: not asked
        (1000.0, [metrics(1), metrics(2)], ["good"]),
        (1000.0, [metrics(1, 0.5), metrics(1, 0.6)], ["good"]),  # a prefill fills the cache
        (1000.0, [metrics(1), metrics(1)], ["bad"]),
        (150.0, [metrics(1), metrics(1)], ["warning"]),  # it may be a long prefill yet
        (70.0, [metrics(1), metrics(1)], ["warning"]),  # the canary is out for 10 s
        (62.0, [metrics(1), metrics(1)], []),
        (1000.0, [metrics(1, running=0), metrics(1, running=0)], []),
    ],
)
def test_frozen_counters(server: Engine, tmp_path: Path, age_s: float, pages: list[str], verdict: list[str]) -> None:
    server.metrics = pages
    assert [each[0] for each in asked(checks.hung, at(server, tmp_path, serving(proof_age_s=age_s)))] == verdict


def test_health_that_lies(server: Engine, tmp_path: Path) -> None:
    nodes = [{"node": "spark1", "engine_alive": True}, {"node": "spark2", "engine_alive": False}]
    found = only(checks.health_lies, at(server, tmp_path, serving(nodes=nodes)))
    assert found.is_bad and "spark2's engine is gone" in found.says
    with engine(tmp_path, "vllm", "VLLM::EngineCore"):
        found = only(checks.health_lies, at(server, tmp_path))
    assert found.is_bad and "VLLM::Worker is gone" in found.says


def test_without_a_daemon_a_living_engine_is_asked(server: Engine, tmp_path: Path) -> None:
    about = at(server, tmp_path)
    about.status = None
    assert verdicts(about) == {}
    about = at(server, tmp_path)
    about.status = None
    about.remember((checks.engine_of.__globals__["launch_id"].__wrapped__,), lambda: LAUNCH)
    with engine(tmp_path, "vllm", "VLLM::EngineCore", "VLLM::Worker_TP0"):
        found = verdicts(about)
    assert found["endpoint.completion"] == "good" and "/v1/chat/completions" in server.asked


# --- the whole proof -------------------------------------------------------------------------------


def message(**more: Any) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", **more}, "finish_reason": "stop"}]})


def test_the_whole_proof_tells_each_fault_once(server: Engine, tmp_path: Path) -> None:
    server.chat = message(content="42")
    about = at(server, tmp_path)
    assert asked(checks.no_reasoning, about) == [("bad", "endpoint.no-reasoning")]
    assert asked(checks.bad_tool_call, about) == [("unknown", "endpoint.bad-tool-call")]
    assert asked(checks.whole_proof, about) == []
    server.chat = message(content="42", reasoning="17 and 25")
    about = at(server, tmp_path)
    assert asked(checks.no_reasoning, about)[0][0] == "unknown"
    assert asked(checks.bad_tool_call, about) == [("bad", "endpoint.bad-tool-call")]
    about = at(server, tmp_path, has_tools=False)
    assert asked(checks.whole_proof, about) == [("good", "endpoint.proof")] and asked(checks.bad_tool_call, about) == []


# --- the key ---------------------------------------------------------------------------------------


def test_a_key_that_is_asked_for_and_taken(server: Engine, tmp_path: Path) -> None:
    server.key, server.invocations = KEY, 401
    found = verdicts(keyed(server, tmp_path))
    assert set(found.values()) == {"good"}
    assert found.keys() >= {
        "endpoint.key-file",
        "endpoint.unauthorized",
        "endpoint.open-without-key",
        "endpoint.key-in-log",
    }


def test_what_vllm_leaves_open_beside_v1_is_doubted(server: Engine, tmp_path: Path) -> None:
    server.key = KEY
    assert asked(checks.invocations_open, keyed(server, tmp_path)) == [("warning", "endpoint.invocations-open")]
    server.invocations = 404
    assert asked(checks.invocations_open, keyed(server, tmp_path)) == [("good", "endpoint.invocations-open")]


def test_an_engine_that_asks_for_no_key(server: Engine, tmp_path: Path) -> None:
    assert asked(checks.open_without_key, keyed(server, tmp_path)) == [("bad", "endpoint.open-without-key")]


def test_an_engine_that_was_started_with_another_key(server: Engine, tmp_path: Path) -> None:
    server.key = "sk-another"
    found = only(checks.unauthorized, keyed(server, tmp_path))
    assert found.is_bad and "401" in found.says and KEY not in found.model_dump_json()
    without = only(checks.unauthorized, at(server, tmp_path))
    assert without.is_bad and "names no key" in without.says


@pytest.mark.parametrize(
    ("content", "mode", "verdict"), [(KEY, 0o600, "good"), (KEY, 0o644, "warning"), (" \n", 0o600, "bad")]
)
def test_the_keys_file(server: Engine, tmp_path: Path, content: str, mode: int, verdict: str) -> None:
    assert asked(checks.key_file, keyed(server, tmp_path, content, mode)) == [(verdict, "endpoint.key-file")]


def test_a_keys_file_that_is_not_there(server: Engine, tmp_path: Path) -> None:
    found = only(checks.key_file, at(server, tmp_path, api_key_file=str(tmp_path / "none")))
    assert found.is_bad and "is not there" in found.says


def test_a_key_in_a_log_is_named_by_its_file_and_not_by_itself(server: Engine, tmp_path: Path) -> None:
    server.key = KEY
    about = keyed(server, tmp_path)
    logs = about.paths.engine_logs
    logs.mkdir(parents=True)
    (logs / "b00t-1.log").write_text("INFO healthy\n")
    (logs / "b00t-2.log").write_bytes(b"x" * 3_000_000 + f"non-default args: {{'api_key': ['{KEY}']}}\n".encode())
    (found,) = checks.key_in_log.asked(about)
    assert found.is_bad and "b00t-2.log" in found.says and KEY not in found.model_dump_json()


def test_a_key_on_a_command_line(server: Engine, tmp_path: Path) -> None:
    about = keyed(server, tmp_path)
    shown = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--api-key", KEY])
    try:
        wait_for(lambda: bool(checks.processes_with(KEY.encode())))
        found = only(checks.key_in_log, about)
    finally:
        shown.kill()
        shown.wait()
    assert found.is_bad and f"pid {shown.pid}" in found.says and KEY not in found.model_dump_json()
    assert asked(checks.key_in_log, keyed(server, tmp_path)) == [("good", "endpoint.key-in-log")]


def test_a_key_of_two_letters_is_looked_for_nowhere(server: Engine, tmp_path: Path) -> None:
    assert asked(checks.key_in_log, keyed(server, tmp_path, "ab")) == []
