"""The endpoint, over real sockets: a server that answers with recorded bodies, or hangs, or is not there."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkd.engine.endpoint import Endpoint, Proved
from sparkd.engine.metrics import Counters, parse_counters
from sparkd.engine.proof import TOOL_NAME, judge_tool_call, parse_answer
from sparkd.model.finding import Cure, Finding

FIELD = Path(__file__).parent.parent / "data" / "field"
KEY = "sk-SECRET-abc123"
MAX_S = 20.0

Reply = tuple[int, str]


def recorded(name: str) -> Reply:
    """Status and body of a recorded exchange."""
    _, status, body = (FIELD / "http" / f"{name}.txt").read_text().split("\n", 2)
    return int(status.split()[1]), body.strip()


def completion(finish: str = "stop", **message: Any) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]})


def tool_call(name: str = TOOL_NAME, arguments: str = '{"city": "Paris"}') -> Reply:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return completion("tool_calls", content=None, tool_calls=[call])


class Server(http.server.ThreadingHTTPServer):
    """Answers with `chat` and `replies`, remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, Reply] = {"/health": (200, ""), "/v1/models": recorded("models")}
        self.chat: Callable[[dict[str, Any]], Reply] = lambda request: recorded("chat")
        self.key: str | None = None
        self.hangs = threading.Event()
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        guarded = self.path.startswith("/v1") and self.server.key is not None
        if guarded and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self._reply(401, '{"error":"Unauthorized"}')
        return self._reply(*self.server.replies.get(self.path, (404, '{"detail":"Not Found"}')))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        if self.server.hangs.is_set():
            self.server.hangs.clear()
            threading.Event().wait(MAX_S)
        return self._reply(*self.server.chat(request))

    def _reply(self, status: int, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def prove(server: Server, *, reasoning: bool = False, tools: bool = False, **more: Any) -> Proved | Finding:
    return Endpoint(server.url, "tiny", **more).prove(reasoning=reasoning, tools=tools, max_s=MAX_S)


def test_a_recorded_completion_proves(server: Server) -> None:
    result = prove(server)
    assert isinstance(result, Proved) and result.content_chars > 5 and not result.tool_call
    assert "answered in" in result.says and result.reasoning_field is None
    assert server.asked[0]["stream"] is False and server.asked[0]["model"] == "tiny"


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_accepted_under_both_names(server: Server, field: str) -> None:
    server.replies["/v1/models"] = (200, '{"data": [{"id": "tiny", "max_model_len": 131072}]}')
    server.chat = lambda request: completion(content="42", **{field: "17 and 25"})
    result = prove(server, reasoning=True)
    assert isinstance(result, Proved) and result.reasoning_field == field and field in result.says
    assert server.asked[0]["max_tokens"] >= 1024


def test_a_short_context_is_not_overdrawn(server: Server) -> None:
    """The recorded model has 1024 tokens of context: asking for 1024 more would be refused (http/toomax.txt)."""
    server.chat = lambda request: (
        completion(content="42", reasoning="x") if request["max_tokens"] < 1000 else recorded("toomax")
    )
    assert isinstance(prove(server, reasoning=True), Proved)


def test_missing_reasoning_needs_a_person_after_a_second_question(server: Server) -> None:
    result = prove(server, reasoning=True)
    assert isinstance(result, Finding) and result.id == "endpoint.no-reasoning" and result.cure is Cure.PERSON
    assert len(server.asked) == 2 and server.asked[0]["messages"] != server.asked[1]["messages"]


def test_reasoning_without_content_is_no_proof(server: Server) -> None:
    server.chat = lambda request: recorded("k_reason")  # content null, finish_reason length
    result = prove(server, reasoning=True)
    assert isinstance(result, Finding) and result.id == "endpoint.no-content" and "length" in result.says


def test_a_tool_call_proves_and_what_is_not_one_does_not(server: Server) -> None:
    server.chat = lambda request: tool_call() if "tools" in request else completion(content="42")
    result = prove(server, tools=True)
    assert isinstance(result, Proved) and result.tool_call
    assert server.asked[-1]["tool_choice"] == "auto"

    shy = iter([completion(content="42"), completion(content="It rains."), completion(content="Sun."), tool_call()])
    server.chat = lambda request: next(shy)
    result = prove(server, tools=True)
    assert isinstance(result, Proved) and "only when required" in result.says


@pytest.mark.parametrize(
    ("reply", "says", "cure"),
    [
        (tool_call(name="rm"), "'rm', which was not offered", Cure.PERSON),
        (tool_call(arguments="{city: Paris}"), "not JSON", Cure.PERSON),
        (tool_call(arguments='{"town": "Paris"}'), "lack 'city'", Cure.PERSON),
        (completion(content='<tool>{"name": "get_weather", "city": "Paris"}'), "came as text", Cure.PERSON),
        (recorded("tools_auto"), "--enable-auto-tool-choice", Cure.PERSON),
        (completion(content="It rains."), "no tool call in 3 answers", Cure.RELAUNCH),
    ],
)
def test_tool_calls_that_are_none(server: Server, reply: Reply, says: str, cure: Cure) -> None:
    server.chat = lambda request: reply if "tools" in request else completion(content="42")
    result = prove(server, tools=True)
    assert isinstance(result, Finding) and result.id == "endpoint.bad-tool-call"
    assert says in result.says and result.cure is cure


def test_the_key_is_sent_and_never_shown(server: Server) -> None:
    server.key = KEY
    assert isinstance(prove(server, api_key=KEY), Proved)
    for wrong in (None, "sk-wrong"):
        result = prove(server, api_key=wrong)
        assert isinstance(result, Finding) and result.id == "endpoint.unauthorized" and result.cure is Cure.PERSON
        assert "sk-" not in str(result)


@pytest.mark.parametrize(
    ("reply", "id", "cure"),
    [
        (recorded("unkmodel"), "endpoint.model-missing", Cure.PERSON),
        ((500, '{"error":{"message":"EngineCore encountered an issue.","code":500}}'), "endpoint.error", Cure.RELAUNCH),
        ((200, "<html>"), "endpoint.error", Cure.PERSON),
        ((200, "{}"), "endpoint.no-content", Cure.RELAUNCH),
        (completion(content=""), "endpoint.no-content", Cure.RELAUNCH),
    ],
)
def test_answers_that_are_none(server: Server, reply: Reply, id: str, cure: Cure) -> None:
    server.chat = lambda request: reply
    result = prove(server)
    assert isinstance(result, Finding) and (result.id, result.cure) == (id, cure)


def test_another_model_on_the_port(server: Server) -> None:
    result = Endpoint(server.url, "deepseek-v4-flash").prove(reasoning=False, tools=False, max_s=MAX_S)
    assert isinstance(result, Finding) and result.id == "endpoint.model-missing" and "tiny" in result.says


def test_a_sick_endpoint_a_silent_one_and_none(server: Server) -> None:
    server.replies["/health"] = (503, "")
    result = prove(server)
    assert isinstance(result, Finding) and result.id == "endpoint.health" and "503" in result.says
    assert Endpoint(server.url, "tiny").health(5) == 503

    server.hangs.set()
    result = Endpoint(server.url, "tiny").canary(max_s=0.5)
    assert isinstance(result, Finding) and result.id == "endpoint.timeout" and result.cure is Cure.RELAUNCH

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Endpoint(f"http://127.0.0.1:{free.getsockname()[1]}", "tiny")
        assert nobody.health(1) is None and nobody.counters(1) is None and nobody.models(1) is None
        result = nobody.canary(max_s=2)
    assert isinstance(result, Finding) and result.id == "endpoint.unreachable"


def test_the_canary_is_cheap_and_takes_reasoning_for_an_answer(server: Server) -> None:
    server.chat = lambda request: recorded("k_reason")
    result = Endpoint(server.url, "tiny").canary(max_s=MAX_S)
    assert isinstance(result, Proved) and result.reasoning_field == "reasoning"
    assert server.asked[0]["max_tokens"] <= 16


def test_the_counters_are_read_from_recorded_metrics(server: Server) -> None:
    server.replies["/metrics"] = (200, (FIELD / "metrics-speculative.txt").read_text())
    counters = Endpoint(server.url, "tiny").counters(5)
    assert counters == Counters(
        0, 0, generation_tokens=35, prompt_tokens=46, iterations=35, successes=4, server_errors=0
    )
    assert counters is not None and counters.cache == 0.0
    assert not counters.busy and not counters.moved_since(counters)
    server.replies["/metrics"] = (200, "# nothing of vLLM's\n")
    assert Endpoint(server.url, "tiny").counters(5) is None


def test_counters_add_up_over_engines_and_leave_failures_out() -> None:
    text = (FIELD / "metrics.txt").read_text()
    one = parse_counters(text)
    two = parse_counters(text + text.replace('engine="0"', 'engine="1"'))
    assert one is not None and two is not None
    assert two.generation_tokens == 2 * one.generation_tokens > 0 and two.successes == 2 * one.successes > 0
    aborted = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 7.0\n'
    failed = 'http_requests_total{handler="/v1/chat/completions",method="POST",status="5xx"} 3.0\n'
    three = parse_counters(text + aborted + failed)
    assert three is not None and three.successes == one.successes and three.server_errors == one.server_errors + 3


@pytest.mark.parametrize("raw", [None, [], {}, {"choices": []}, {"choices": [{"message": None}]}, {"choices": "no"}, 7])
def test_any_json_is_survived(raw: Any) -> None:
    assert parse_answer(raw).content == ""
    assert judge_tool_call(parse_answer(raw)) == "the answer was empty"
